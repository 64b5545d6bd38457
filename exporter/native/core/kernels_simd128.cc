// WebAssembly's vectors of 128 bits. Offsets become int16s and meet the whole activations: one instruction multiplies
// eight and adds them in pairs.
#if defined(__wasm_simd128__)

#include "kernels_simd128.h"

#include <algorithm>
#include <cstring>

#include "kernels_batch.h"
#include "phrases.h"

namespace tinyqmoe {
namespace simd128 {
namespace {

uint8_t largest_of(v128_t v) {
  uint8_t lanes[16];
  wasm_v128_store(lanes, v);
  return *std::max_element(lanes, lanes + 16);
}

// The sum of four int32s, which may need more than 32 bits.
inline int64_t sum4(v128_t v) {
  const v128_t pair = wasm_i64x2_add(wasm_i64x2_extend_low_i32x4(v), wasm_i64x2_extend_high_i32x4(v));
  return wasm_i64x2_extract_lane(pair, 0) + wasm_i64x2_extract_lane(pair, 1);
}

tinyqmoe_status expand_phrases(const Dictionary& dictionary, const CodedRow* rows, uint32_t n, uint32_t cols,
                               uint8_t* out, uint64_t stride) {
  return expand_phrases_any(dictionary, rows, n, cols, out, stride);
}

// ---- base 3 ----

// The digits of 16 bytes, those of one place next to each other, kBase3Block from one place to the next:
// floor(3 * v / 256) reaches 1 at 86 and 2 at 171. Returns what five of them leave.
inline v128_t put_digits(v128_t v, v128_t bias, uint8_t* out) {
  for (uint32_t digit = 0; digit < kBase3Digits; ++digit, out += kBase3Block) {
    const v128_t at_least_one = wasm_u8x16_ge(v, wasm_u8x16_const_splat(86));
    const v128_t at_least_two = wasm_u8x16_ge(v, wasm_u8x16_const_splat(171));
    wasm_v128_store(out, wasm_i8x16_sub(wasm_i8x16_sub(bias, at_least_one), at_least_two));
    v = wasm_i8x16_add(v, wasm_i8x16_add(v, v));
  }
  return v;
}

uint8_t expand_base3(const uint8_t* packed, uint32_t cols, uint8_t bias, uint8_t* out) {
  constexpr uint32_t kColumns = kBase3Columns;
  const v128_t biases = wasm_u8x16_splat(bias);
  v128_t rests = wasm_u8x16_const_splat(0);
  uint32_t begin = 0;
  for (; begin + kColumns <= cols; begin += kColumns, packed += kBase3Block) {
    for (uint32_t h = 0; h < kBase3Block; h += 16) {
      rests = wasm_u8x16_max(rests, put_digits(wasm_v128_load(packed + h), biases, out + begin + h));
    }
  }
  const uint8_t last = scalar_kernels()->expand_base3(packed, cols - begin, bias, out + begin);
  return std::max(largest_of(rests), last);
}

// ---- packed offsets ----

inline v128_t zip_low(v128_t a, v128_t b) {
  return wasm_i8x16_shuffle(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
inline v128_t zip_high(v128_t a, v128_t b) {
  return wasm_i8x16_shuffle(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
inline v128_t zip_pairs_low(v128_t a, v128_t b) { return wasm_i16x8_shuffle(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
inline v128_t zip_pairs_high(v128_t a, v128_t b) { return wasm_i16x8_shuffle(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }

inline void put_biased(v128_t offsets, v128_t bias, uint8_t* out) {
  wasm_v128_store(out, wasm_i8x16_add(offsets, bias));
}

uint8_t unpack2(const uint8_t* packed, uint32_t n_blocks, uint8_t bias, uint8_t* out) {
  const v128_t biases = wasm_u8x16_splat(bias);
  v128_t largest = wasm_u8x16_const_splat(0);
  for (uint32_t block = 0; block < n_blocks; ++block, packed += 16, out += 64) {
    const v128_t v = wasm_v128_load(packed);
    const v128_t a = plane<2>(v, 0), b = plane<2>(v, 1), c = plane<2>(v, 2), d = plane<2>(v, 3);
    largest = wasm_u8x16_max(largest, wasm_u8x16_max(wasm_u8x16_max(a, b), wasm_u8x16_max(c, d)));
    const v128_t ab_low = zip_low(a, b), ab_high = zip_high(a, b);
    const v128_t cd_low = zip_low(c, d), cd_high = zip_high(c, d);
    put_biased(zip_pairs_low(ab_low, cd_low), biases, out);
    put_biased(zip_pairs_high(ab_low, cd_low), biases, out + 16);
    put_biased(zip_pairs_low(ab_high, cd_high), biases, out + 32);
    put_biased(zip_pairs_high(ab_high, cd_high), biases, out + 48);
  }
  return largest_of(largest);
}

uint8_t unpack4(const uint8_t* packed, uint32_t n_blocks, uint8_t bias, uint8_t* out) {
  const v128_t biases = wasm_u8x16_splat(bias);
  v128_t largest = wasm_u8x16_const_splat(0);
  for (uint32_t block = 0; block < n_blocks; ++block, packed += 16, out += 32) {
    const v128_t v = wasm_v128_load(packed);
    const v128_t a = plane<4>(v, 0), b = plane<4>(v, 1);
    largest = wasm_u8x16_max(largest, wasm_u8x16_max(a, b));
    put_biased(zip_low(a, b), biases, out);
    put_biased(zip_high(a, b), biases, out + 16);
  }
  return largest_of(largest);
}

uint8_t unpack8(const uint8_t* packed, uint32_t n_blocks, uint8_t bias, uint8_t* out) {
  const v128_t biases = wasm_u8x16_splat(bias);
  v128_t largest = wasm_u8x16_const_splat(0);
  for (uint32_t block = 0; block < n_blocks; ++block, packed += 16, out += 16) {
    const v128_t v = wasm_v128_load(packed);
    largest = wasm_u8x16_max(largest, v);
    put_biased(v, biases, out);
  }
  return largest_of(largest);
}

uint8_t unpack(const uint8_t* packed, uint32_t code_bits, uint32_t cols, uint8_t bias, uint8_t* out) {
  const uint32_t per_block = 16 * 8 / code_bits;
  const uint32_t n_blocks = cols / per_block;
  const auto kernel = code_bits == 2 ? unpack2 : code_bits == 4 ? unpack4 : unpack8;
  const uint8_t largest = kernel(packed, n_blocks, bias, out);
  const uint32_t done = n_blocks * per_block;
  const uint8_t rest = scalar_kernels()->unpack(packed + n_blocks * 16, code_bits, cols - done, bias, out + done);
  return std::max(largest, rest);
}

// Every quarter of a block has a sum of its own, of which no lane overflows in a whole row.
constexpr uint32_t kQuarters = 4;
static_assert(int64_t{65536 / kPackedBlock} * 2 * 15 * kMostActivation <= INT32_MAX);

template <uint32_t kBits>
int64_t dot_packed_bits(const uint8_t* packed, uint32_t n_blocks, const int8_t* packed_x) {
  v128_t sums[kQuarters] = {};
  for (uint32_t block = 0; block < n_blocks; ++block, packed += kPackedBlock) {
    const v128_t halves[2] = {wasm_v128_load(packed), wasm_v128_load(packed + 16)};
    for (uint32_t k = 0; k < 8 / kBits; ++k, packed_x += 2 * kPackedBlock) {
      for (uint32_t h = 0; h < 2; ++h) {
        const v128_t offsets = plane<kBits>(halves[h], k);
        const int8_t* const x = packed_x + 16 * h;
        const v128_t first = whole8(x, x + kPackedBlock), second = whole8(x + 8, x + kPackedBlock + 8);
        add_products(wasm_u16x8_extend_low_u8x16(offsets), first, sums + 2 * h);
        add_products(wasm_u16x8_extend_high_u8x16(offsets), second, sums + 2 * h + 1);
      }
    }
  }
  int64_t sum = 0;
  for (const v128_t& quarter : sums) sum += sum4(quarter);
  return sum;
}

void dot_packed(const PackedTask& task) { run_packed(task, dot_packed_bits<2>, dot_packed_bits<4>); }

// ---- clipped rows ----

// The upper bits of the columns 16 * part on of a block, at their place in offsets.
template <uint32_t kBits>
inline v128_t upper_bits(const uint8_t* upper, uint32_t part) {
  if (kBits == 4) return wasm_u8x16_const_splat(0);
  const uint32_t right = 2 * part;  // from bit 4 on, to which it is shifted first
  if (kBits == 6) {
    const v128_t v = wasm_v128_load(upper);
    const v128_t shifted = right < 4 ? wasm_i8x16_shl(v, 4 - right) : wasm_u8x16_shr(v, right - 4);
    return wasm_v128_and(shifted, wasm_u8x16_const_splat(0x30));
  }
  const v128_t v = wasm_v128_load64_splat(upper);
  const v128_t first = right < 4 ? wasm_i8x16_shl(v, 4 - right) : wasm_u8x16_shr(v, right - 4);
  const v128_t second = right < 4 ? wasm_i8x16_shl(v, 3 - right) : wasm_u8x16_shr(v, right - 3);
  return wasm_v128_and(wasm_i64x2_shuffle(first, second, 0, 2), wasm_u8x16_const_splat(0x10));
}

// Adds the products of a block. Each half of its columns has two sums.
template <uint32_t kBits>
inline void add_clipped_block(const uint8_t* row, const int16_t* x, v128_t sums[kQuarters]) {
  for (uint32_t part = 0; part < 4; ++part, x += 16) {
    const v128_t lower = plane<4>(wasm_v128_load(row + 16 * (part % 2)), part / 2);
    const v128_t offsets = wasm_v128_or(lower, upper_bits<kBits>(row + kClippedLower, part));
    v128_t* const to = sums + part / 2 * 2;
    add_products(wasm_u16x8_extend_low_u8x16(offsets), wasm_v128_load(x), to);
    add_products(wasm_u16x8_extend_high_u8x16(offsets), wasm_v128_load(x + 8), to + 1);
  }
}

template <uint32_t kBits>
void dot_clipped_bits(const ClippedTask& task) {
  constexpr uint32_t kBlocksPerFlush = 256;
  static_assert(int64_t{kBlocksPerFlush} * 4 * 63 * kMostActivation <= INT32_MAX);
  int64_t of_exceptions[kClippedRows];
  dot_exceptions_plain(task, of_exceptions);
  for (uint32_t r = 0; r < task.n_rows; ++r) {
    const uint8_t* row = task.row(r);
    const int16_t* x = task.x.whole;
    task.sums[r] = of_exceptions[task.first_row + r];
    for (uint32_t block = 0; block < task.n_blocks();) {
      const uint32_t end = std::min(task.n_blocks(), block + kBlocksPerFlush);
      v128_t sums[kQuarters] = {};
      for (; block < end; ++block, row += clipped_block(kBits), x += kClippedColumns) {
        add_clipped_block<kBits>(row, x, sums);
      }
      for (const v128_t& quarter : sums) task.sums[r] += sum4(quarter);
    }
  }
}

void dot_clipped(const ClippedTask& task) {
  run_clipped(task, dot_clipped_bits<4>, dot_clipped_bits<5>, dot_clipped_bits<6>);
}

// ---- products ----

// How many columns a lane can add up: it takes two of eight.
constexpr uint32_t kColumnsPerFlush = 1024;
static_assert(int64_t{kColumnsPerFlush / 8} * 2 * 255 * kMostActivation <= INT32_MAX);

// Adds the products of n columns, a multiple of 8.
inline void add_columns(const DotTask& task, uint32_t n, int64_t sums[kDotRows]) {
  for (uint32_t i = 0; i < n;) {
    const uint32_t end = std::min(n, i + kColumnsPerFlush);
    v128_t lanes[kDotRows] = {};
    for (; i < end; i += 8) {
      const v128_t x = wasm_v128_load(task.x.whole + i);
      for (uint32_t r = 0; r < kDotRows; ++r) add_products(wasm_u16x8_load8x8(task.offsets[r] + i), x, lanes + r);
    }
    for (uint32_t r = 0; r < kDotRows; ++r) sums[r] += sum4(lanes[r]);
  }
}

void dot(DotTask* task) {
  std::fill_n(task->sums, kDotRows, 0);
  const uint32_t whole = task->n / 8 * 8;
  const uint32_t rest = task->n - whole;
  add_columns(*task, whole, task->sums);
  if (rest == 0) return;
  // Copies, so that nothing past a row is read and nothing past a group is multiplied.
  uint8_t offsets[kDotRows][8] = {};
  int16_t x[8] = {};
  DotTask last = *task;
  for (uint32_t r = 0; r < kDotRows; ++r) {
    std::memcpy(offsets[r], task->offsets[r] + whole, rest);
    last.offsets[r] = offsets[r];
  }
  std::memcpy(x, task->x.whole + whole, rest * sizeof *x);
  last.x = {x, nullptr, nullptr};
  add_columns(last, 8, task->sums);
}

// ---- many tokens ----

// Adds the sums of rows from `first` on to the results of a batch: of groups, each one's float times its scale.
inline void add_sums(v128_t sums, const float*, int64_t* results, uint32_t first) {
  int64_t* const to = results + first;
  wasm_v128_store(to, wasm_i64x2_add(wasm_v128_load(to), wasm_i64x2_extend_low_i32x4(sums)));
  wasm_v128_store(to + 2, wasm_i64x2_add(wasm_v128_load(to + 2), wasm_i64x2_extend_high_i32x4(sums)));
}
inline void add_sums(v128_t sums, const float* scales, float* y, uint32_t first) {
  wasm_v128_store(y + first, add_group(wasm_v128_load(y + first), sums, scales + first));
}

struct Tile : WideTile {
  static constexpr uint32_t kTokens = 2;  // with kDotRows rows, sums, levels and activations are in registers of x86 too

  template <uint32_t kMany, bool kGroups>
  void add(BatchPart<kGroups> part) const {
    const int16_t* x[kMany];
    BatchResult<kGroups>* results[kMany];
    for (uint32_t t = 0; t < kMany; ++t) x[t] = part.whole(t), results[t] = part.results(t);
    for (uint32_t first = 0; first < part.task.n_rows; first += kDotRows) {
      const float* scales = part.scales();
      for (uint32_t i = 0; i < part.n; scales += kGroups ? kBatchRows : 0) {
        const uint32_t end = part.end_of_sum(i);
        v128_t lanes[kMany][kDotRows] = {};
        for (; i < end; i += 8) {
          v128_t v[kMany];
          for (uint32_t t = 0; t < kMany; ++t) v[t] = wasm_v128_load(x[t] + i);
          for (uint32_t r = 0; r < kDotRows; ++r) {
            const v128_t w = wasm_v128_load(levels[first + r] + i);
            for (uint32_t t = 0; t < kMany; ++t) add_products(w, v[t], &lanes[t][r]);
          }
        }
        for (uint32_t t = 0; t < kMany; ++t) add_sums(four_sums(lanes[t]), scales, results[t], first);
      }
    }
  }
};

void dot_f32(const float* const w[kDotRows], const float* x, uint32_t n, float sums[kDotRows]) {
  v128_t p[kDotRows][2] = {};
  const uint32_t whole = n / 8 * 8;
  for (uint32_t i = 0; i < whole; i += 8) {
    const v128_t v[2] = {wasm_v128_load(x + i), wasm_v128_load(x + i + 4)};
    for (uint32_t r = 0; r < kDotRows; ++r) {
      for (uint32_t h = 0; h < 2; ++h) {
        p[r][h] = wasm_f32x4_add(p[r][h], wasm_f32x4_mul(wasm_v128_load(w[r] + i + 4 * h), v[h]));
      }
    }
  }
  float x_rest[8] = {};
  std::memcpy(x_rest, x + whole, (n - whole) * sizeof(float));
  for (uint32_t r = 0; r < kDotRows; ++r) {
    // Zeros add nothing: a partial sum is never -0.
    float w_rest[8] = {};
    std::memcpy(w_rest, w[r] + whole, (n - whole) * sizeof(float));
    for (uint32_t h = 0; h < 2; ++h) {
      const v128_t product = wasm_f32x4_mul(wasm_v128_load(w_rest + 4 * h), wasm_v128_load(x_rest + 4 * h));
      p[r][h] = wasm_f32x4_add(p[r][h], product);
    }
    const v128_t q = wasm_f32x4_add(p[r][0], p[r][1]);
    const v128_t s = wasm_f32x4_add(q, wasm_i32x4_shuffle(q, q, 2, 3, 2, 3));
    sums[r] = wasm_f32x4_extract_lane(s, 0) + wasm_f32x4_extract_lane(s, 1);
  }
}

// ---- activations ----

uint32_t abs_max_bits(const float* x, uint32_t n) {
  v128_t value = wasm_u32x4_const_splat(0);
  const uint32_t whole = n / 4 * 4;
  for (uint32_t i = 0; i < whole; i += 4) value = wasm_u32x4_max(value, wasm_f32x4_abs(wasm_v128_load(x + i)));
  uint32_t lanes[4];
  wasm_v128_store(lanes, value);
  return std::max(*std::max_element(lanes, lanes + 4), scalar_kernels()->abs_max_bits(x + whole, n - whole));
}

inline v128_t round4(const float* x, v128_t factor) {
  return wasm_i32x4_trunc_sat_f32x4(wasm_f32x4_nearest(wasm_f32x4_mul(wasm_v128_load(x), factor)));
}

void quantize(const float* x, uint32_t n, float factor, int16_t* whole, int8_t* high, int8_t* low) {
  const v128_t factors = wasm_f32x4_splat(factor);
  const uint32_t body = n / 8 * 8;
  for (uint32_t i = 0; i < body; i += 8) {
    const v128_t q = wasm_i16x8_narrow_i32x4(round4(x + i, factors), round4(x + i + 4, factors));
    const v128_t h = wasm_i16x8_shr(wasm_i16x8_add(q, wasm_i16x8_const_splat(128)), 8);
    const v128_t planes = wasm_i8x16_narrow_i16x8(h, wasm_i16x8_sub(q, wasm_i16x8_shl(h, 8)));
    wasm_v128_store(whole + i, q);
    wasm_v128_store64_lane(high + i, planes, 0);
    wasm_v128_store64_lane(low + i, planes, 1);
  }
  scalar_kernels()->quantize(x + body, n - body, factor, whole + body, high + body, low + body);
}

constexpr Kernels kSimd128 = {
    expand_phrases, expand_base3,         unpack,      pack_plain, nullptr, dot_packed,
    nullptr,        unpack_clipped_plain, dot_clipped, dot,        dot_groups, multiply_tiles<Tile, false>,
    multiply_tiles<Tile, true>, dot_f32, abs_max_bits, quantize};

}  // namespace
}  // namespace simd128

const Kernels* simd128_kernels() { return &simd128::kSimd128; }

}  // namespace tinyqmoe

#endif  // defined(__wasm_simd128__)
