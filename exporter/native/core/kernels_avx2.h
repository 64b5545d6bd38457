// What the files of the AVX2 and AVX-512 kernels share. Every function carries the target attribute, so that no file needs
// a compiler flag and the rest of the library runs on any x86-64.
#ifndef TINYQMOE_CORE_KERNELS_AVX2_H_
#define TINYQMOE_CORE_KERNELS_AVX2_H_

#include <immintrin.h>

#include "kernels.h"

#define AVX2 __attribute__((target("avx2")))
#define AVX2_INLINE __attribute__((target("avx2"), always_inline)) inline

namespace tinyqmoe {
namespace avx2 {

AVX2_INLINE __m256i load32(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
AVX2_INLINE void store32(void* p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
AVX2_INLINE __m128i load16(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
AVX2_INLINE void store16(void* p, __m128i v) { _mm_storeu_si128(static_cast<__m128i*>(p), v); }

AVX2_INLINE int32_t sum8(__m256i lanes) {
  __m128i v = _mm_add_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
  v = _mm_add_epi32(v, _mm_shuffle_epi32(v, 0x4E));
  v = _mm_add_epi32(v, _mm_shuffle_epi32(v, 0xB1));
  return _mm_cvtsi128_si32(v);
}

AVX2_INLINE uint8_t largest_of(__m256i v) {
  // The largest byte is the smallest of the complements; minpos finds the smallest of eight 16-bit words.
  const __m128i all = _mm_max_epu8(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  const __m128i complement = _mm_xor_si128(all, _mm_set1_epi8(-1));
  const __m128i smaller = _mm_min_epu8(complement, _mm_srli_epi16(complement, 8));
  return static_cast<uint8_t>(~_mm_cvtsi128_si32(_mm_minpos_epu16(smaller)));
}

// Plane k of packed bytes: the offsets at bits k * kBits of each byte.
template <uint32_t kBits>
AVX2_INLINE __m256i plane(__m256i packed, int k) {
  return _mm256_and_si256(_mm256_srli_epi16(packed, k * static_cast<int>(kBits)),
                          _mm256_set1_epi8((1 << kBits) - 1));
}

// n levels of a row, as int16, and zeros to the next multiple of 16.
AVX2_INLINE void widen_row(const uint8_t* offsets, uint32_t n, int32_t level_min, int16_t* out) {
  const __m256i bias = _mm256_set1_epi16(static_cast<int16_t>(level_min));
  const uint32_t body = n / 16 * 16;
  for (uint32_t i = 0; i < body; i += 16) {
    store32(out + i, _mm256_add_epi16(_mm256_cvtepu8_epi16(load16(offsets + i)), bias));
  }
  if (body == n) return;
  store32(out + body, _mm256_setzero_si256());
  for (uint32_t i = body; i < n; ++i) out[i] = static_cast<int16_t>(offsets[i] + level_min);
}

// The four sums of eight lanes each, added to `sums`.
AVX2_INLINE void add_sums(const __m256i lanes[kDotRows], int64_t* sums) {
  const __m256i all = _mm256_hadd_epi32(_mm256_hadd_epi32(lanes[0], lanes[1]), _mm256_hadd_epi32(lanes[2], lanes[3]));
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
  store32(sums, _mm256_add_epi64(load32(sums), _mm256_cvtepi32_epi64(four)));
}

// Of the table of kernels.h, for rows without products; kernels_avx2_rows.cc.
tinyqmoe_status expand_phrases(const Dictionary& dictionary, const CodedRow* rows, uint32_t n, uint32_t cols,
                               uint8_t* out, uint64_t stride);
uint8_t expand_base3(const uint8_t* packed, uint32_t cols, uint8_t bias, uint8_t* out);
uint8_t unpack(const uint8_t* packed, uint32_t code_bits, uint32_t cols, uint8_t bias, uint8_t* out);
void pack(const uint8_t* offsets, uint32_t n, uint32_t bits, uint8_t* packed);
void pack_x(const X16& x, uint32_t cols, uint32_t code_bits, int8_t* packed);

// And those that wider registers do not serve better; kernels_avx2.cc.
int64_t dot_base3(const uint8_t* packed, uint32_t n_blocks, const X16& x);
void dot_f32(const float* const w[kDotRows], const float* x, uint32_t n, float sums[kDotRows]);
uint32_t abs_max_bits(const float* x, uint32_t n);
void quantize(const float* x, uint32_t n, float factor, int16_t* whole, int8_t* high, int8_t* low);

}  // namespace avx2
}  // namespace tinyqmoe
#endif  // TINYQMOE_CORE_KERNELS_AVX2_H_
