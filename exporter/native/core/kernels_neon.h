// AArch64 kernels. Included by two files, which define TARGET (a function attribute, or nothing) and
// dot16(acc, a, b): acc plus the products of any 16 int8, four to a lane. Offsets meet the two planes of the activations.

#include <arm_neon.h>

#include <algorithm>

#include "kernels_batch.h"
#include "kernels_neon_rows.h"
#include "phrases.h"

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

namespace tinyqmoe {
namespace {

tinyqmoe_status expand_phrases(const Dictionary& dictionary, const CodedRow* rows, uint32_t n, uint32_t cols,
                               uint8_t* out, uint64_t stride) {
  return expand_phrases_any(dictionary, rows, n, cols, out, stride);
}

// ---- base 3 ----

// The digits of 16 bytes, those of one place next to each other, `distance` from one place to the next:
// floor(3 * v / 256) reaches 1 at 86 and 2 at 171. Returns what five of them leave.
inline uint8x16_t put_digits(uint8x16_t v, uint8x16_t bias, uint8_t* out, uint32_t distance) {
  for (uint32_t digit = 0; digit < kBase3Digits; ++digit, out += distance) {
    const uint8x16_t at_least_one = vcgeq_u8(v, vdupq_n_u8(86));
    const uint8x16_t at_least_two = vcgeq_u8(v, vdupq_n_u8(171));
    vst1q_u8(out, vsubq_u8(vsubq_u8(bias, at_least_one), at_least_two));
    v = vmulq_u8(v, vdupq_n_u8(3));
  }
  return v;
}

uint8_t expand_base3(const uint8_t* packed, uint32_t cols, uint8_t bias, uint8_t* out) {
  constexpr uint32_t kColumns = kBase3Columns;
  const uint8x16_t biases = vdupq_n_u8(bias);
  uint8x16_t rests = vdupq_n_u8(0);
  uint32_t begin = 0;
  for (; begin + kColumns <= cols; begin += kColumns, packed += kBase3Block) {
    for (uint32_t h = 0; h < kBase3Block; h += 16) {
      rests = vmaxq_u8(rests, put_digits(vld1q_u8(packed + h), biases, out + begin + h, kBase3Block));
    }
  }
  const uint8_t last = scalar_kernels()->expand_base3(packed, cols - begin, bias, out + begin);
  return std::max(vmaxvq_u8(rests), last);
}

// ---- packed offsets ----

uint8_t unpack2(const uint8_t* packed, uint32_t n_blocks, uint8_t bias, uint8_t* out) {
  const uint8x16_t biases = vdupq_n_u8(bias);
  uint8x16_t largest = vdupq_n_u8(0);
  for (uint32_t block = 0; block < n_blocks; ++block, packed += 16, out += 64) {
    const uint8x16_t v = vld1q_u8(packed);
    uint8x16x4_t planes;
    for (uint32_t k = 0; k < 4; ++k) {
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
    for (uint32_t k = 0; k < 2; ++k) {
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

// ---- products ----

// Offsets of a large alphabet become int8s by offset - 128, which is the offset with its highest bit flipped.
inline uint8_t flipped_bit(uint32_t n_levels) { return n_levels > kNarrowLevels ? 128 : 0; }

// Adds the products of n columns, a multiple of 16.
TARGET inline void add_columns(const DotTask& task, uint32_t n, uint8x16_t flip, PlaneSums sums[kDotRows]) {
  for (uint32_t i = 0; i < n; i += 16) {
    for (uint32_t r = 0; r < kDotRows; ++r) {
      const uint8x16_t offsets = vld1q_u8(task.offsets[r] + i);
      sums[r].add(vreinterpretq_s8_u8(veorq_u8(offsets, flip)), task.x.high + i, task.x.low + i);
    }
  }
}

TARGET void dot(DotTask* task) {
  const uint8_t shift = flipped_bit(task->n_levels);
  const uint8x16_t flip = vdupq_n_u8(shift);
  PlaneSums sums[kDotRows];
  const uint32_t whole = task->n / 16 * 16;
  const uint32_t rest = task->n - whole;
  add_columns(*task, whole, flip, sums);
  if (rest > 0) {
    // Copies, so that nothing past a row is read and nothing past a group is multiplied.
    uint8_t offsets[kDotRows][16] = {};
    int8_t high[16] = {};
    int8_t low[16] = {};
    DotTask last = *task;
    for (uint32_t r = 0; r < kDotRows; ++r) {
      std::memcpy(offsets[r], task->offsets[r] + whole, rest);
      last.offsets[r] = offsets[r];
    }
    std::memcpy(high, task->x.high + whole, rest);
    std::memcpy(low, task->x.low + whole, rest);
    last.x = {nullptr, high, low};
    add_columns(last, 16, flip, sums);
  }
  for (uint32_t r = 0; r < kDotRows; ++r) task->sums[r] = sums[r].sum() + shift * int64_t{task->x_sum};
}

// ---- groups ----

struct Offsets {
  TARGET static inline void add(const GroupsTask& task, uint32_t begin, uint32_t end, PlaneSums sums[kDotRows]) {
    const uint8x16_t flip = vdupq_n_u8(flipped_bit(task.n_levels));
    for (uint32_t i = begin; i < end; i += 16) {
      for (uint32_t r = 0; r < kDotRows; ++r) {
        const uint8x16_t offsets = veorq_u8(vld1q_u8(task.rows[r] + i), flip);
        sums[r].add(vreinterpretq_s8_u8(offsets), task.x.high + i, task.x.low + i);
      }
    }
  }
};

// 16 bytes at a time: half a block, which a group has one or more of.
template <uint32_t kBits>
struct Packed {
  static constexpr uint32_t kPlanes = 8 / kBits;

  TARGET static inline void add(const GroupsTask& task, uint32_t begin, uint32_t end, PlaneSums sums[kDotRows]) {
    for (uint32_t byte = begin / kPlanes; byte < end / kPlanes; byte += kHalfBlock) {
      const uint32_t in_block = byte % kPackedBlock;
      uint8x16_t halves[kDotRows];
      for (uint32_t r = 0; r < kDotRows; ++r) halves[r] = vld1q_u8(task.rows[r] + byte);
      PackedHalf<kBits>::template add<kDotRows>(
          halves, task.packed_x + PackedHalf<kBits>::x_at(byte / kPackedBlock) + in_block, sums);
    }
  }
};

// Four scales, as Scales reads them.
inline float32x4_t four_scales(const Scales& scales, uint64_t at) {
  if (scales.type == TINYQMOE_SCALES_FLOAT32) return vld1q_f32(static_cast<const float*>(scales.values) + at);
  const uint32x4_t code = vshll_n_u16(vld1_u16(static_cast<const uint16_t*>(scales.values) + at), kUe6m10Shift);
  const uint32x4_t value = vaddq_u32(code, vdupq_n_u32(kUe6m10Bias));
  return vreinterpretq_f32_u32(vandq_u32(value, vtstq_u32(code, code)));
}

// The scales of all groups, those of a group's four rows next to each other.
inline void put_scales(const GroupsTask& task) {
  const uint32_t whole = task.n_groups() / 4 * 4;
  for (uint32_t g = 0; g < whole; g += 4) {
    float32x4x4_t rows;
    for (uint32_t r = 0; r < kDotRows; ++r) rows.val[r] = four_scales(task.stored_scales, task.first_scales[r] + g);
    vst4q_f32(task.scales + g * kDotRows, rows);
  }
  task.put_scales(whole);
}

// The float of a group's sum of level * x, times its scale, is added to what the groups before it gave. shift: what levels
// are more than what is multiplied, beside level_min.
template <typename Rows>
TARGET void dot_groups_of(GroupsTask* task, int32_t shift) {
  put_scales(*task);
  float32x4_t y = vdupq_n_f32(0.0f);
  for (uint32_t begin = 0, g = 0; begin < task->cols; begin += task->group_size, ++g) {
    PlaneSums sums[kDotRows];
    Rows::add(*task, begin, begin + task->group_size, sums);
    const int32x4_t high[kDotRows] = {sums[0].high, sums[1].high, sums[2].high, sums[3].high};
    const int32x4_t low[kDotRows] = {sums[0].low, sums[1].low, sums[2].low, sums[3].low};
    const int32x4_t offsets = vaddq_s32(vshlq_n_s32(four_sums(high), 8), four_sums(low));  // fit: kMostGroup
    const int32x4_t correction = vld1q_s32(task->corrections + g * kDotRows);
    const int32x4_t levels = vaddq_s32(vaddq_s32(offsets, correction), vdupq_n_s32(shift * task->x_sums[g]));
    y = vaddq_f32(y, vmulq_f32(vcvtq_f32_s32(levels), vld1q_f32(task->scales + g * kDotRows)));
  }
  vst1q_f32(task->y, y);
}

void dot_groups(GroupsTask* task) {
  if (task->bits == 2) return dot_groups_of<Packed<2>>(task, 0);
  if (task->bits == 4) return dot_groups_of<Packed<4>>(task, 0);
  dot_groups_of<Offsets>(task, flipped_bit(task->n_levels));
}

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

void quantize(const float* x, uint32_t n, float factor, int16_t* whole, int8_t* high, int8_t* low) {
  const uint32_t body = n / 8 * 8;
  for (uint32_t i = 0; i < body; i += 8) {
    const int32x4_t first = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + i), factor));
    const int32x4_t second = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + i + 4), factor));
    const int16x8_t q = vcombine_s16(vmovn_s32(first), vmovn_s32(second));
    const int16x8_t h = vshrq_n_s16(vaddq_s16(q, vdupq_n_s16(128)), 8);
    vst1q_s16(whole + i, q);
    vst1_s8(high + i, vmovn_s16(h));
    vst1_s8(low + i, vmovn_s16(vsubq_s16(q, vshlq_n_s16(h, 8))));
  }
  scalar_kernels()->quantize(x + body, n - body, factor, whole + body, high + body, low + body);
}

template <typename Tile>
constexpr Kernels neon_kernels_of() {
  return {expand_phrases, expand_base3,         unpack,      pack_plain, pack_x,     dot_packed,
          dot_base3,      unpack_clipped_plain, dot_clipped, dot,        dot_groups, multiply_tiles<Tile, false>,
          multiply_tiles<Tile, true>, dot_f32, abs_max_bits, quantize};
}

}  // namespace
}  // namespace tinyqmoe
