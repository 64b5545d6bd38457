// AArch64 kernels. Included by two files, which define TARGET (a function attribute, or nothing) and
// dot16(acc, a, b): acc plus the products of 16 int8, four to a lane; two products of theirs always fit an int16.

#include <arm_neon.h>

#include <algorithm>

#include "codes.h"
#include "kernels.h"

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

namespace tinyqmoe {
namespace {

// ---- phrases ----

template <uint32_t kBits, uint32_t kCap>
TARGET tinyqmoe_status expand_codes(const Dictionary& dictionary, const uint8_t* codes, uint32_t n_codes,
                                    uint32_t cols, uint8_t bias, uint8_t* out, uint64_t capacity) {
  const uint8x16_t biases = vdupq_n_u8(bias);
  const uint8_t* const phrases = dictionary.phrases;
  const uint8_t* const lengths = dictionary.lengths;
  // From below this position a group of codewords, however long, stays inside the output.
  const uint64_t limit = capacity < kOverrun ? 0 : std::min<uint64_t>(cols, capacity - kOverrun + 1);
  RowLengths row;
  uint32_t i = 0;
  for (; i + kCodesPerCheck <= n_codes && row.position < limit; i += kCodesPerCheck) {
    const CodeGroup<kBits> group(codes + uint64_t{i} * kBits / 8);
    for (uint32_t k = 0; k < kCodesPerCheck; ++k) {
      const uint8_t* phrase = phrases + uint64_t{group[k]} * kCap;
      uint8_t* to = out + row.position;
      for (uint32_t j = 0; j < kCap; j += 16) vst1q_u8(to + j, vaddq_u8(vld1q_u8(phrase + j), biases));
      row.add(lengths[group[k]]);
    }
  }
  for (; i < n_codes && row.position < cols && (row.seen & kInvalidLength) == 0; ++i) {
    const uint32_t code = code_at(codes, kBits, i);
    const uint8_t* phrase = phrases + uint64_t{code} * kCap;
    const uint32_t kept = std::min(kCap, cols - row.position);
    for (uint32_t k = 0; k < kept; ++k) out[row.position + k] = static_cast<uint8_t>(phrase[k] + bias);
    row.add(lengths[code]);
  }
  if (i == n_codes && row.fit(cols)) return TINYQMOE_OK;
  return expand_codes_checked(dictionary, codes, n_codes, cols, bias, out, capacity);
}

// Offsets are at most kDirectLevels - 1 here: small enough to be int8.
template <uint32_t kCap>
TARGET inline int32x4_t dot_phrase(int32x4_t sum, const uint8_t* phrase, const int8_t* x) {
  for (uint32_t j = 0; j < kCap; j += 16) {
    sum = dot16(sum, vreinterpretq_s8_u8(vld1q_u8(phrase + j)), vld1q_s8(x + j));
  }
  return sum;
}

template <uint32_t kBits, uint32_t kCap>
TARGET tinyqmoe_status dot_codes(const Dictionary& dictionary, const uint8_t* codes, uint32_t n_codes, uint32_t cols,
                                 const int8_t* x, int32_t* acc) {
  const uint8_t* const phrases = dictionary.phrases;
  const uint8_t* const lengths = dictionary.lengths;
  // Two sums: a product would otherwise wait for the one before it.
  int32x4_t even = vdupq_n_s32(0);
  int32x4_t odd = vdupq_n_s32(0);
  RowLengths row;
  uint32_t i = 0;
  for (; i + kCodesPerCheck <= n_codes && row.position < cols; i += kCodesPerCheck) {
    const CodeGroup<kBits> group(codes + uint64_t{i} * kBits / 8);
    for (uint32_t k = 0; k < kCodesPerCheck; k += 2) {
      even = dot_phrase<kCap>(even, phrases + uint64_t{group[k]} * kCap, x + row.position);
      row.add(lengths[group[k]]);
      odd = dot_phrase<kCap>(odd, phrases + uint64_t{group[k + 1]} * kCap, x + row.position);
      row.add(lengths[group[k + 1]]);
    }
  }
  for (; i < n_codes && row.position < cols; ++i) {
    const uint32_t code = code_at(codes, kBits, i);
    even = dot_phrase<kCap>(even, phrases + uint64_t{code} * kCap, x + row.position);
    row.add(lengths[code]);
  }
  if (i == n_codes && row.fit(cols)) {
    *acc = vaddvq_s32(vaddq_s32(even, odd));
    return TINYQMOE_OK;
  }
  return scalar_kernels()->dot_codes(dictionary, codes, n_codes, cols, x, acc);
}

tinyqmoe_status expand_codes_any(const Dictionary& dictionary, const uint8_t* codes, uint32_t n_codes, uint32_t cols,
                                 uint8_t bias, uint8_t* out, uint64_t capacity) {
  static constexpr decltype(&expand_codes<8, 16>) kVariants[3][2] = {
      {expand_codes<8, 16>, expand_codes<8, 32>},
      {expand_codes<12, 16>, expand_codes<12, 32>},
      {expand_codes<16, 16>, expand_codes<16, 32>},
  };
  const DictionaryShape& shape = dictionary.shape;
  return kVariants[shape.code_bits / 4 - 2][shape.cap / 16 - 1](dictionary, codes, n_codes, cols, bias, out, capacity);
}

tinyqmoe_status dot_codes_any(const Dictionary& dictionary, const uint8_t* codes, uint32_t n_codes, uint32_t cols,
                              const int8_t* x, int32_t* acc) {
  static constexpr decltype(&dot_codes<8, 16>) kVariants[3][2] = {
      {dot_codes<8, 16>, dot_codes<8, 32>},
      {dot_codes<12, 16>, dot_codes<12, 32>},
      {dot_codes<16, 16>, dot_codes<16, 32>},
  };
  const DictionaryShape& shape = dictionary.shape;
  return kVariants[shape.code_bits / 4 - 2][shape.cap / 16 - 1](dictionary, codes, n_codes, cols, x, acc);
}

// ---- packed offsets ----

// Offset k of each byte.
template <uint32_t kBits>
inline uint8x16_t plane(uint8x16_t packed, int k) {
  return vandq_u8(vshlq_u8(packed, vdupq_n_s8(static_cast<int8_t>(-k * static_cast<int>(kBits)))),
                  vdupq_n_u8((1 << kBits) - 1));
}

uint8_t unpack2(const uint8_t* packed, uint32_t n_blocks, uint8_t bias, uint8_t* out) {
  const uint8x16_t biases = vdupq_n_u8(bias);
  uint8x16_t largest = vdupq_n_u8(0);
  for (uint32_t block = 0; block < n_blocks; ++block, packed += 16, out += 64) {
    const uint8x16_t v = vld1q_u8(packed);
    uint8x16x4_t planes;
    for (int k = 0; k < 4; ++k) {
      const uint8x16_t offsets = plane<2>(v, k);
      largest = vmaxq_u8(largest, offsets);
      planes.val[k] = vaddq_u8(offsets, biases);
    }
    vst4q_u8(out, planes);
  }
  return vmaxvq_u8(largest);
}

uint8_t unpack4(const uint8_t* packed, uint32_t n_blocks, uint8_t bias, uint8_t* out) {
  const uint8x16_t biases = vdupq_n_u8(bias);
  uint8x16_t largest = vdupq_n_u8(0);
  for (uint32_t block = 0; block < n_blocks; ++block, packed += 16, out += 32) {
    const uint8x16_t v = vld1q_u8(packed);
    uint8x16x2_t planes;
    for (int k = 0; k < 2; ++k) {
      const uint8x16_t offsets = plane<4>(v, k);
      largest = vmaxq_u8(largest, offsets);
      planes.val[k] = vaddq_u8(offsets, biases);
    }
    vst2q_u8(out, planes);
  }
  return vmaxvq_u8(largest);
}

uint8_t unpack8(const uint8_t* packed, uint32_t n_blocks, uint8_t bias, uint8_t* out) {
  const uint8x16_t biases = vdupq_n_u8(bias);
  uint8x16_t largest = vdupq_n_u8(0);
  for (uint32_t block = 0; block < n_blocks; ++block, packed += 16, out += 16) {
    const uint8x16_t v = vld1q_u8(packed);
    largest = vmaxq_u8(largest, v);
    vst1q_u8(out, vaddq_u8(v, biases));
  }
  return vmaxvq_u8(largest);
}

uint8_t unpack(const uint8_t* packed, uint32_t code_bits, uint32_t cols, uint8_t bias, uint8_t* out) {
  const uint32_t per_block = 16 * 8 / code_bits;
  const uint32_t n_blocks = cols / per_block;
  const auto kernel = code_bits == 2 ? unpack2 : code_bits == 4 ? unpack4 : unpack8;
  const uint8_t largest = kernel(packed, n_blocks, bias, out);
  const uint32_t done = n_blocks * per_block;
  const uint8_t rest =
      scalar_kernels()->unpack(packed + uint64_t{n_blocks} * 16, code_bits, cols - done, bias, out + done);
  return std::max(largest, rest);
}

template <uint32_t kBits>
TARGET uint8_t dot_packed_bits(const uint8_t* packed, uint32_t n_blocks, const int8_t* packed_x, int32_t* acc) {
  int32x4_t sums[2] = {vdupq_n_s32(0), vdupq_n_s32(0)};
  uint8x16_t largest = vdupq_n_u8(0);
  for (uint32_t block = 0; block < n_blocks; ++block, packed += kPackedBlock) {
    const uint8x16_t halves[2] = {vld1q_u8(packed), vld1q_u8(packed + 16)};
    for (uint32_t k = 0; k < 8 / kBits; ++k, packed_x += kPackedBlock) {
      for (uint32_t h = 0; h < 2; ++h) {
        const uint8x16_t offsets = plane<kBits>(halves[h], static_cast<int>(k));
        largest = vmaxq_u8(largest, offsets);
        sums[h] = dot16(sums[h], vreinterpretq_s8_u8(offsets), vld1q_s8(packed_x + 16 * h));
      }
    }
  }
  *acc = vaddvq_s32(vaddq_s32(sums[0], sums[1]));
  return vmaxvq_u8(largest);
}

uint8_t dot_packed(const uint8_t* packed, uint32_t code_bits, uint32_t n_blocks, const int8_t* packed_x,
                   int32_t* acc) {
  const auto kernel = code_bits == 2 ? dot_packed_bits<2> : dot_packed_bits<4>;
  return kernel(packed, n_blocks, packed_x, acc);
}

uint8_t largest(const uint8_t* bytes, uint64_t n) {
  uint8x16_t value = vdupq_n_u8(0);
  const uint64_t whole = n / 16 * 16;
  for (uint64_t i = 0; i < whole; i += 16) value = vmaxq_u8(value, vld1q_u8(bytes + i));
  return std::max(vmaxvq_u8(value), scalar_kernels()->largest(bytes + whole, n - whole));
}

// ---- products ----

// Adds the products of n columns, a multiple of 16.
template <uint32_t kTokens>
TARGET inline void dot_whole(const DotTask& task, uint32_t n, int32x4_t total[kDotRows][kTokens]) {
  const uint8x16_t flip = vdupq_n_u8(task.shift);
  for (uint32_t i = 0; i < n; i += 16) {
    int8x16_t x[kTokens];
    for (uint32_t t = 0; t < kTokens; ++t) x[t] = vld1q_s8(task.x[t] + i);
    for (uint32_t r = 0; r < kDotRows; ++r) {
      const int8x16_t w = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(task.offsets[r] + i), flip));
      for (uint32_t t = 0; t < kTokens; ++t) total[r][t] = dot16(total[r][t], w, x[t]);
    }
  }
}

template <uint32_t kTokens>
TARGET void dot_tokens(DotTask* task) {
  int32x4_t total[kDotRows][kTokens];
  for (auto& row : total) {
    for (int32x4_t& t : row) t = vdupq_n_s32(0);
  }
  const uint32_t whole = task->n / 16 * 16;
  const uint32_t rest = task->n - whole;
  dot_whole<kTokens>(*task, whole, total);
  if (rest > 0) {
    // Copies, so that nothing past a row is read and nothing past a group is multiplied.
    uint8_t offsets[kDotRows][16] = {};
    int8_t x[kTokens][16] = {};
    DotTask last = *task;
    for (uint32_t r = 0; r < kDotRows; ++r) {
      std::memcpy(offsets[r], task->offsets[r] + whole, rest);
      last.offsets[r] = offsets[r];
    }
    for (uint32_t t = 0; t < kTokens; ++t) {
      std::memcpy(x[t], task->x[t] + whole, rest);
      last.x[t] = x[t];
    }
    dot_whole<kTokens>(last, 16, total);
  }
  for (uint32_t r = 0; r < kDotRows; ++r) {
    for (uint32_t t = 0; t < kTokens; ++t) task->acc[r][t] = vaddvq_s32(total[r][t]);
  }
}

void dot(DotTask* task, uint32_t n_tokens) { n_tokens == 1 ? dot_tokens<1>(task) : dot_tokens<2>(task); }

void dot_f32(const float* const w[kDotRows], const float* x, uint32_t n, float sums[kDotRows]) {
  float32x4_t p[kDotRows][2];
  for (auto& row : p) row[0] = row[1] = vdupq_n_f32(0.0f);
  const uint32_t whole = n / 8 * 8;
  for (uint32_t i = 0; i < whole; i += 8) {
    const float32x4_t v[2] = {vld1q_f32(x + i), vld1q_f32(x + i + 4)};
    for (uint32_t r = 0; r < kDotRows; ++r) {
      for (uint32_t h = 0; h < 2; ++h) p[r][h] = vaddq_f32(p[r][h], vmulq_f32(vld1q_f32(w[r] + i + 4 * h), v[h]));
    }
  }
  float x_rest[8] = {};
  std::memcpy(x_rest, x + whole, (n - whole) * sizeof(float));
  for (uint32_t r = 0; r < kDotRows; ++r) {
    // Zeros add nothing: a partial sum is never -0.
    float w_rest[8] = {};
    std::memcpy(w_rest, w[r] + whole, (n - whole) * sizeof(float));
    for (uint32_t h = 0; h < 2; ++h) {
      p[r][h] = vaddq_f32(p[r][h], vmulq_f32(vld1q_f32(w_rest + 4 * h), vld1q_f32(x_rest + 4 * h)));
    }
    const float32x4_t q = vaddq_f32(p[r][0], p[r][1]);
    const float32x2_t s = vadd_f32(vget_low_f32(q), vget_high_f32(q));
    sums[r] = vget_lane_f32(s, 0) + vget_lane_f32(s, 1);
  }
}

// ---- activations ----

uint32_t abs_max_bits(const float* x, uint32_t n) {
  uint32x4_t value = vdupq_n_u32(0);
  const uint32_t whole = n / 4 * 4;
  for (uint32_t i = 0; i < whole; i += 4) {
    value = vmaxq_u32(value, vreinterpretq_u32_f32(vabsq_f32(vld1q_f32(x + i))));
  }
  return std::max(vmaxvq_u32(value), scalar_kernels()->abs_max_bits(x + whole, n - whole));
}

void quantize(const float* x, uint32_t n, float factor, int8_t* out) {
  const uint32_t whole = n / 8 * 8;
  for (uint32_t i = 0; i < whole; i += 8) {
    const int32x4_t low = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + i), factor));
    const int32x4_t high = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + i + 4), factor));
    vst1_s8(out + i, vqmovn_s16(vcombine_s16(vqmovn_s32(low), vqmovn_s32(high))));
  }
  scalar_kernels()->quantize(x + whole, n - whole, factor, out + whole);
}

constexpr Kernels kNeon = {expand_codes_any, dot_codes_any, unpack,       dot_packed, largest,
                           dot,              dot_f32,       abs_max_bits, quantize};

}  // namespace
}  // namespace tinyqmoe
