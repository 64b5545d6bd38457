// What the files of the AVX2 and AVX-512 kernels share. Every function carries the target attribute, so that no file needs
// a compiler flag and the rest of the library runs on any x86-64.
#ifndef TINYQMOE_CORE_KERNELS_AVX2_H_
#define TINYQMOE_CORE_KERNELS_AVX2_H_

#include <immintrin.h>

#include <algorithm>

#include "kernels.h"

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

#define AVX2 __attribute__((target("avx2")))
#define AVX2_INLINE __attribute__((target("avx2"), always_inline)) inline

namespace tinyqmoe {
namespace avx2 {

AVX2_INLINE __m256i load32(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
AVX2_INLINE void store32(void* p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
AVX2_INLINE __m128i load16(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
AVX2_INLINE void store16(void* p, __m128i v) { _mm_storeu_si128(static_cast<__m128i*>(p), v); }

// Asks memory for what rows have further on. Where products take many instructions, a core does not look that far ahead by
// itself, and would wait for memory about as long as it computes. Into the second cache and beyond a page: only both
// together helped a Zen 4 (docs/kernels.md). The address may lie past the rows.
AVX2_INLINE void prefetch(const uint8_t* at) { _mm_prefetch(reinterpret_cast<const char*>(at) + 6144, _MM_HINT_T1); }

AVX2_INLINE int32_t sum8(__m256i lanes) {
  __m128i v = _mm_add_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
  v = _mm_add_epi32(v, _mm_shuffle_epi32(v, 0x4E));
  v = _mm_add_epi32(v, _mm_shuffle_epi32(v, 0xB1));
  return _mm_cvtsi128_si32(v);
}

// A sum stays in its register: gcc copies it in every step else.
AVX2_INLINE void keep(__m256i* sum) { __asm__("" : "+x"(*sum)); }

// Sums of two products, int16, to sums of four, int32.
AVX2_INLINE __m256i widen(__m256i pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }

AVX2_INLINE uint8_t largest_of(__m256i v) {
  // The largest byte is the smallest of the complements; minpos finds the smallest of eight 16-bit words.
  const __m128i all = _mm_max_epu8(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  const __m128i complement = _mm_xor_si128(all, _mm_set1_epi8(-1));
  const __m128i smaller = _mm_min_epu8(complement, _mm_srli_epi16(complement, 8));
  return static_cast<uint8_t>(~_mm_cvtsi128_si32(_mm_minpos_epu16(smaller)));
}

// How many sums of two products of an offset and an element of a plane an int16 can hold; 0 for more than 128 levels.
constexpr uint32_t int16_steps(uint32_t n_levels) { return 32767 / (2 * 128 * (n_levels - 1)); }

// Plane k of packed bytes: the offsets at bits k * kBits of each byte.
template <uint32_t kBits>
AVX2_INLINE __m256i plane(__m256i packed, int k) {
  return _mm256_and_si256(_mm256_srli_epi16(packed, k * static_cast<int>(kBits)),
                          _mm256_set1_epi8((1 << kBits) - 1));
}

// The four sums of the lower four lanes each, and above them those of the upper four.
AVX2_INLINE __m256i sums_of_halves(const __m256i lanes[kDotRows]) {
  return _mm256_hadd_epi32(_mm256_hadd_epi32(lanes[0], lanes[1]), _mm256_hadd_epi32(lanes[2], lanes[3]));
}

// The four sums of eight lanes each.
AVX2_INLINE __m128i four_sums32(const __m256i lanes[kDotRows]) {
  const __m256i all = sums_of_halves(lanes);
  return _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
}

// As int64.
AVX2_INLINE __m256i four_sums(const __m256i lanes[kDotRows]) { return _mm256_cvtepi32_epi64(four_sums32(lanes)); }

// Elements of eight columns of a plane.
AVX2_INLINE __m128i collect(const int8_t* plane, const uint16_t columns[kExceptions]) {
  static_assert(kExceptions == 8);
  __m128i all = _mm_cvtsi32_si128(static_cast<uint8_t>(plane[columns[0]]));
  all = _mm_insert_epi8(all, plane[columns[1]], 1);
  all = _mm_insert_epi8(all, plane[columns[2]], 2);
  all = _mm_insert_epi8(all, plane[columns[3]], 3);
  all = _mm_insert_epi8(all, plane[columns[4]], 4);
  all = _mm_insert_epi8(all, plane[columns[5]], 5);
  all = _mm_insert_epi8(all, plane[columns[6]], 6);
  return _mm_insert_epi8(all, plane[columns[7]], 7);
}

// Activations of eight columns, from the planes: rows read them too, so they lie in the first cache, where there would be
// no room for the same in int16s beside them.
AVX2_INLINE __m128i collect(const X16& x, const uint16_t columns[kExceptions]) {
  const __m128i low = _mm_cvtepi8_epi16(collect(x.low, columns));
  return _mm_add_epi16(_mm_unpacklo_epi8(_mm_setzero_si128(), collect(x.high, columns)), low);
}

// As dot_exceptions_plain. Activations are collected for eight differences at once. Columns are bounded in a register: a
// file that is mapped can change between two looks at it.
AVX2_INLINE void dot_exceptions(const ClippedTask& task, int64_t sums[kClippedRows]) {
  constexpr int64_t kBlocksPerFlush = 128;
  static_assert(kBlocksPerFlush * 4 * 128 * kMostActivation <= INT32_MAX);  // of two lanes
  const __m128i last = _mm_set1_epi16(static_cast<int16_t>(task.cols - 1));
  std::fill_n(sums, kClippedRows, 0);
  for (Exceptions at = task.exceptions; at.any();) {
    __m128i lanes[kClippedRows] = {};
    const uint8_t* const end = at.block + std::min<int64_t>(at.end - at.block, kBlocksPerFlush * kExceptionBytes);
    for (; at.block < end; at.next()) {
      uint16_t columns[kExceptions];
      store16(columns, _mm_min_epu16(load16(at.block), last));
      const __m128i differences = _mm_cvtepi8_epi16(_mm_cvtsi64_si128(load<int64_t>(at.block + kDifferences)));
      __m128i* const to = lanes + at.row();
      *to = _mm_add_epi32(*to, _mm_madd_epi16(differences, collect(task.x, columns)));
    }
    for (uint32_t r = 0; r < kClippedRows; ++r) {
      const __m128i halves = _mm_add_epi32(lanes[r], _mm_shuffle_epi32(lanes[r], 0x4E));
      sums[r] += int64_t{_mm_cvtsi128_si32(halves)} + _mm_extract_epi32(halves, 1);
    }
  }
}

// Base-3 digits of 32 bytes, from the highest on. They stay in registers.
class Base3Digits {
 public:
  AVX2_INLINE explicit Base3Digits(const uint8_t* packed) : v_(_mm256_xor_si256(load32(packed), _mm256_set1_epi8(-128))) {}

  // floor(3 * v / 256) reaches 1 at 86 and 2 at 171. Bytes are less 128, and three times what is 128 less is again 128
  // less, modulo 256.
  AVX2_INLINE __m256i next() {
    __m256i zero = _mm256_set1_epi8(85 - 128);
    __asm__("" : "+x"(zero));  // one comparison: gcc makes two instructions of it where it knows the number
    const __m256i at_least_one = _mm256_cmpgt_epi8(v_, zero);
    const __m256i at_least_two = _mm256_cmpgt_epi8(v_, _mm256_set1_epi8(170 - 128));
    v_ = _mm256_add_epi8(v_, _mm256_add_epi8(v_, v_));
    return _mm256_sub_epi8(_mm256_sub_epi8(_mm256_setzero_si256(), at_least_one), at_least_two);
  }

 private:
  __m256i v_;
};

// Of the table of kernels.h, for rows without products; kernels_avx2_rows.cc.
tinyqmoe_status expand_phrases(const Dictionary& dictionary, const CodedRow* rows, uint32_t n, uint32_t cols,
                               uint8_t* out, uint64_t stride);
uint8_t expand_base3(const uint8_t* packed, uint32_t cols, uint8_t bias, uint8_t* out);
uint8_t unpack(const uint8_t* packed, uint32_t code_bits, uint32_t cols, uint8_t bias, uint8_t* out);
void pack(const uint8_t* offsets, uint32_t n, uint32_t bits, uint8_t* packed);
void pack_x(const X16& x, uint32_t cols, uint32_t code_bits, int8_t* packed);

// Of clipped rows; kernels_avx2_clipped.cc.
void unpack_clipped(const uint8_t* row, uint32_t bits, uint32_t cols, uint8_t bias, uint8_t* out);
void dot_clipped(const ClippedTask& task);

// Of rows with groups; kernels_avx2_groups.cc.
void dot_groups(GroupsTask* task);

// Two columns of a tile, as int16. Rows lie side by side, so that each has a lane of sums: nothing is added up across
// lanes, which costs a group of columns as much as its products.
struct alignas(64) PairOfColumns {
  int16_t levels[kBatchRows][2];
};

constexpr uint32_t kHalf = kBatchRows / 2;  // rows whose sums a register holds

// Adds the sums of a tile's rows to the results of a token: of groups, each one's float times its scale.
AVX2_INLINE void put_sums(__m256i first, __m256i second, const float*, int64_t* results) {
  const __m128i quarters[] = {_mm256_castsi256_si128(first), _mm256_extracti128_si256(first, 1),
                              _mm256_castsi256_si128(second), _mm256_extracti128_si256(second, 1)};
  for (const __m128i& sums : quarters) {
    store32(results, _mm256_add_epi64(load32(results), _mm256_cvtepi32_epi64(sums)));
    results += 4;
  }
}
AVX2_INLINE void put_sums(__m256i first, __m256i second, const float* scales, float* y) {
  for (const __m256i& sums : {first, second}) {
    const __m256 terms = _mm256_mul_ps(_mm256_cvtepi32_ps(sums), _mm256_loadu_ps(scales));
    _mm256_storeu_ps(y, _mm256_add_ps(_mm256_loadu_ps(y), terms));
    scales += kHalf, y += kHalf;
  }
}

// Of many tokens; kernels_avx2_batch.cc. Past n columns, fill_pairs puts zeros to the next multiple of 4.
void fill_pairs(const BatchTask& task, uint32_t begin, uint32_t n, PairOfColumns* pairs);
void dot_batch(const BatchTask& task);
void dot_batch_groups(const BatchTask& task);

// And those that wider registers do not serve better; kernels_avx2.cc.
void dot_f32(const float* const w[kDotRows], const float* x, uint32_t n, float sums[kDotRows]);
uint32_t abs_max_bits(const float* x, uint32_t n);
void quantize(const float* x, uint32_t n, float factor, int16_t* whole, int8_t* high, int8_t* low);

}  // namespace avx2
}  // namespace tinyqmoe
#endif  // TINYQMOE_CORE_KERNELS_AVX2_H_
