// AVX2: rows to offsets.
#if defined(__x86_64__)

#include "kernels_avx2.h"

#include <algorithm>
#include <cstring>

#include "phrases.h"

namespace tinyqmoe {
namespace avx2 {
namespace {

// ---- base 3 ----

// The digits of 32 bytes in the order of their columns: floor(3 * v / 256) reaches 1 at 86 and 2 at 171. Returns what
// five of them leave.
AVX2_INLINE __m256i put_digits(__m256i v, __m256i bias, uint8_t* out) {
  const __m256i one = _mm256_set1_epi8(86), two = _mm256_set1_epi8(static_cast<char>(171));
  for (uint32_t digit = 0; digit < kBase3Digits; ++digit, out += kBase3Block) {
    const __m256i at_least_one = _mm256_cmpeq_epi8(_mm256_max_epu8(v, one), v);
    const __m256i at_least_two = _mm256_cmpeq_epi8(_mm256_max_epu8(v, two), v);
    store32(out, _mm256_sub_epi8(_mm256_sub_epi8(bias, at_least_one), at_least_two));
    v = _mm256_add_epi8(v, _mm256_add_epi8(v, v));
  }
  return v;
}

// ---- packed offsets ----

// Halves of 128 bits that interleaving left in the order 0 2, 1 3 to the order 0 1, 2 3.
AVX2_INLINE void put_pair(__m256i low, __m256i high, __m256i bias, uint8_t* out, uint32_t distance) {
  store32(out, _mm256_add_epi8(_mm256_permute2x128_si256(low, high, 0x20), bias));
  store32(out + distance, _mm256_add_epi8(_mm256_permute2x128_si256(low, high, 0x31), bias));
}

AVX2 uint8_t unpack2(const uint8_t* packed, uint32_t n_blocks, uint8_t bias, uint8_t* out) {
  const __m256i biases = _mm256_set1_epi8(static_cast<char>(bias));
  __m256i largest = _mm256_setzero_si256();
  for (uint32_t block = 0; block < n_blocks; ++block, packed += 32, out += 128) {
    const __m256i v = load32(packed);
    const __m256i a = plane<2>(v, 0), b = plane<2>(v, 1), c = plane<2>(v, 2), d = plane<2>(v, 3);
    largest = _mm256_max_epu8(largest, _mm256_max_epu8(_mm256_max_epu8(a, b), _mm256_max_epu8(c, d)));
    const __m256i ab_low = _mm256_unpacklo_epi8(a, b), ab_high = _mm256_unpackhi_epi8(a, b);
    const __m256i cd_low = _mm256_unpacklo_epi8(c, d), cd_high = _mm256_unpackhi_epi8(c, d);
    put_pair(_mm256_unpacklo_epi16(ab_low, cd_low), _mm256_unpackhi_epi16(ab_low, cd_low), biases, out, 64);
    put_pair(_mm256_unpacklo_epi16(ab_high, cd_high), _mm256_unpackhi_epi16(ab_high, cd_high), biases, out + 32, 64);
  }
  return largest_of(largest);
}

AVX2 uint8_t unpack4(const uint8_t* packed, uint32_t n_blocks, uint8_t bias, uint8_t* out) {
  const __m256i biases = _mm256_set1_epi8(static_cast<char>(bias));
  __m256i largest = _mm256_setzero_si256();
  for (uint32_t block = 0; block < n_blocks; ++block, packed += 32, out += 64) {
    const __m256i v = load32(packed);
    const __m256i a = plane<4>(v, 0), b = plane<4>(v, 1);
    largest = _mm256_max_epu8(largest, _mm256_max_epu8(a, b));
    put_pair(_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b), biases, out, 32);
  }
  return largest_of(largest);
}

AVX2 uint8_t unpack8(const uint8_t* packed, uint32_t n_blocks, uint8_t bias, uint8_t* out) {
  const __m256i biases = _mm256_set1_epi8(static_cast<char>(bias));
  __m256i largest = _mm256_setzero_si256();
  for (uint32_t block = 0; block < n_blocks; ++block, packed += 32, out += 32) {
    const __m256i v = load32(packed);
    largest = _mm256_max_epu8(largest, v);
    store32(out, _mm256_add_epi8(v, biases));
  }
  return largest_of(largest);
}

// The other way. Two offsets become a pair, pairs the bytes; packing interleaves halves of 128 bits.
AVX2_INLINE __m256i fours(const uint8_t* offsets) {
  const __m256i pairs = _mm256_maddubs_epi16(load32(offsets), _mm256_set1_epi16(0x0401));
  return _mm256_madd_epi16(pairs, _mm256_set1_epi32(0x00100001));
}

AVX2 void pack2(const uint8_t* offsets, uint32_t n_blocks, uint8_t* packed) {
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  for (uint32_t block = 0; block < n_blocks; ++block, offsets += 128, packed += 32) {
    const __m256i ab = _mm256_packus_epi32(fours(offsets), fours(offsets + 32));
    const __m256i cd = _mm256_packus_epi32(fours(offsets + 64), fours(offsets + 96));
    store32(packed, _mm256_permutevar8x32_epi32(_mm256_packus_epi16(ab, cd), order));
  }
}

// Sixteen bytes of each half, in this order.
AVX2_INLINE __m256i shuffle16(__m256i v, __m128i order) {
  return _mm256_shuffle_epi8(v, _mm256_broadcastsi128_si256(order));
}

// Of 128 bytes the bytes 0, 4, 8, ..., then 1, 5, 9, ... and so on, 64 bytes apart.
AVX2_INLINE void put_fourths(const int8_t* x, int8_t* out) {
  const __m128i by_place = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  __m256i v[4];  // of every 32 bytes: eight of each place
  for (uint32_t k = 0; k < 4; ++k) {
    v[k] = _mm256_permutevar8x32_epi32(shuffle16(load32(x + 32 * k), by_place), order);
  }
  const __m256i even_low = _mm256_unpacklo_epi64(v[0], v[1]), odd_low = _mm256_unpackhi_epi64(v[0], v[1]);
  const __m256i even_high = _mm256_unpacklo_epi64(v[2], v[3]), odd_high = _mm256_unpackhi_epi64(v[2], v[3]);
  store32(out, _mm256_permute2x128_si256(even_low, even_high, 0x20));
  store32(out + 64, _mm256_permute2x128_si256(odd_low, odd_high, 0x20));
  store32(out + 128, _mm256_permute2x128_si256(even_low, even_high, 0x31));
  store32(out + 192, _mm256_permute2x128_si256(odd_low, odd_high, 0x31));
}

// Of 64 bytes the even ones, and the odd ones.
AVX2_INLINE void put_halves(const int8_t* x, int8_t* out) {
  const __m128i by_place = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
  const __m256i low = _mm256_permute4x64_epi64(shuffle16(load32(x), by_place), 0xD8);
  const __m256i high = _mm256_permute4x64_epi64(shuffle16(load32(x + 32), by_place), 0xD8);
  store32(out, _mm256_permute2x128_si256(low, high, 0x20));
  store32(out + 64, _mm256_permute2x128_si256(low, high, 0x31));
}

AVX2 void pack4(const uint8_t* offsets, uint32_t n_blocks, uint8_t* packed) {
  const __m256i weights = _mm256_set1_epi16(0x1001);
  for (uint32_t block = 0; block < n_blocks; ++block, offsets += 64, packed += 32) {
    const __m256i a = _mm256_maddubs_epi16(load32(offsets), weights);
    const __m256i b = _mm256_maddubs_epi16(load32(offsets + 32), weights);
    store32(packed, _mm256_permute4x64_epi64(_mm256_packus_epi16(a, b), 0xD8));
  }
}

}  // namespace

__attribute__((target("avx2,bmi2,lzcnt"))) tinyqmoe_status expand_phrases(const Dictionary& dictionary,
                                                                          const CodedRow* rows, uint32_t n,
                                                                          uint32_t cols, uint8_t* out,
                                                                          uint64_t stride) {
  return expand_phrases_any(dictionary, rows, n, cols, out, stride);
}

AVX2 uint8_t expand_base3(const uint8_t* packed, uint32_t cols, uint8_t bias, uint8_t* out) {
  const __m256i biases = _mm256_set1_epi8(static_cast<char>(bias));
  __m256i rests = _mm256_setzero_si256();
  uint32_t begin = 0;
  for (; begin + kBase3Columns <= cols; begin += kBase3Columns, packed += kBase3Block) {
    rests = _mm256_max_epu8(rests, put_digits(load32(packed), biases, out + begin));
  }
  const uint32_t left = cols - begin;
  const uint32_t n = (left + kBase3Digits - 1) / kBase3Digits;
  uint8_t last[kBase3Block] = {};
  uint8_t digits[kBase3Columns];
  std::memcpy(last, packed, n);
  rests = _mm256_max_epu8(rests, put_digits(load32(last), biases, digits));
  for (uint32_t digit = 0, at = 0; at < left; ++digit, at += n) {
    std::memcpy(out + begin + at, digits + digit * kBase3Block, std::min(n, left - at));
  }
  return largest_of(rests);
}

AVX2 void pack_x(const X16& x, uint32_t cols, uint32_t code_bits, int8_t* packed) {
  const uint32_t columns = kPackedBlock * 8 / code_bits;
  for (uint32_t i = 0; i < cols; i += columns, packed += 2 * columns) {
    if (code_bits == 2) {
      put_fourths(x.high + i, packed);
      put_fourths(x.low + i, packed + 32);
    } else {
      put_halves(x.high + i, packed);
      put_halves(x.low + i, packed + 32);
    }
  }
}

uint8_t unpack(const uint8_t* packed, uint32_t code_bits, uint32_t cols, uint8_t bias, uint8_t* out) {
  const uint32_t per_block = 32 * 8 / code_bits;
  const uint32_t n_blocks = cols / per_block;
  const auto kernel = code_bits == 2 ? unpack2 : code_bits == 4 ? unpack4 : unpack8;
  const uint8_t largest = kernel(packed, n_blocks, bias, out);
  const uint32_t left = cols - n_blocks * per_block;
  if (left == 0) return largest;
  uint8_t last[32] = {}, offsets[128];  // of the block that is not whole
  const uint32_t n_bytes = (left * code_bits + 7) / 8;
  std::memcpy(last, packed + uint64_t{n_blocks} * 32, n_bytes);
  last[n_bytes - 1] &= static_cast<uint8_t>(0xFF >> (n_bytes * 8 - left * code_bits));  // what follows the last column
  const uint8_t of_last = kernel(last, 1, bias, offsets);
  std::memcpy(out + n_blocks * per_block, offsets, left);
  return std::max(largest, of_last);
}

void pack(const uint8_t* offsets, uint32_t n, uint32_t bits, uint8_t* packed) {
  const uint32_t per_block = 32 * 8 / bits;
  const uint32_t n_blocks = n / per_block;
  const auto kernel = bits == 2 ? pack2 : pack4;
  kernel(offsets, n_blocks, packed);
  const uint32_t done = n_blocks * per_block;
  pack_plain(offsets + done, n - done, bits, packed + uint64_t{n_blocks} * 32);
}

}  // namespace avx2
}  // namespace tinyqmoe

#endif  // defined(__x86_64__)
