// AVX2: rows to offsets.
#if defined(__x86_64__)

#include "kernels_avx2.h"

#include <algorithm>

#include "codes.h"

namespace tinyqmoe {
namespace avx2 {
namespace {

// ---- phrases ----

template <uint32_t kCap>
AVX2_INLINE void put_phrase(const uint8_t* phrase, __m256i bias, uint8_t* out) {
  if constexpr (kCap == 16) {
    store16(out, _mm_add_epi8(load16(phrase), _mm256_castsi256_si128(bias)));
  } else {
    store32(out, _mm256_add_epi8(load32(phrase), bias));
  }
}

template <uint32_t kBits, uint32_t kCap>
AVX2 tinyqmoe_status expand_codes_of(const Dictionary& dictionary, const uint8_t* codes, uint32_t n_codes, uint32_t cols,
                                  uint8_t bias, uint8_t* out, uint64_t capacity) {
  const __m256i biases = _mm256_set1_epi8(static_cast<char>(bias));
  const uint8_t* const phrases = dictionary.phrases;
  const uint8_t* const lengths = dictionary.lengths;
  // From below this position a group of codewords, however long, stays inside the output.
  const uint64_t limit = capacity < kOverrun ? 0 : std::min<uint64_t>(cols, capacity - kOverrun + 1);
  RowLengths row;
  uint32_t i = 0;
  for (; i + kCodesPerCheck <= n_codes && row.position < limit; i += kCodesPerCheck) {
    const CodeGroup<kBits> group(codes + uint64_t{i} * kBits / 8);
    for (uint32_t k = 0; k < kCodesPerCheck; ++k) {
      put_phrase<kCap>(phrases + uint64_t{group[k]} * kCap, biases, out + row.position);
      row.add(lengths[group[k]]);
    }
  }
  for (; i < n_codes && row.position < cols && (row.seen & kInvalidLength) == 0; ++i) {
    const uint32_t code = code_at(codes, kBits, i);
    alignas(32) uint8_t phrase[kCap];
    put_phrase<kCap>(phrases + uint64_t{code} * kCap, biases, phrase);
    std::memcpy(out + row.position, phrase, std::min(kCap, cols - row.position));
    row.add(lengths[code]);
  }
  if (i == n_codes && row.fit(cols)) return TINYQMOE_OK;
  return expand_codes_checked(dictionary, codes, n_codes, cols, bias, out, capacity);
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

}  // namespace

tinyqmoe_status expand_codes(const Dictionary& dictionary, const uint8_t* codes, uint32_t n_codes, uint32_t cols,
                                 uint8_t bias, uint8_t* out, uint64_t capacity) {
  static constexpr decltype(&expand_codes_of<8, 16>) kVariants[3][2] = {
      {expand_codes_of<8, 16>, expand_codes_of<8, 32>},
      {expand_codes_of<12, 16>, expand_codes_of<12, 32>},
      {expand_codes_of<16, 16>, expand_codes_of<16, 32>},
  };
  const DictionaryShape& shape = dictionary.shape;
  return kVariants[shape.code_bits / 4 - 2][shape.cap / 16 - 1](dictionary, codes, n_codes, cols, bias, out, capacity);
}

uint8_t unpack(const uint8_t* packed, uint32_t code_bits, uint32_t cols, uint8_t bias, uint8_t* out) {
  const uint32_t per_block = 32 * 8 / code_bits;
  const uint32_t n_blocks = cols / per_block;
  const auto kernel = code_bits == 2 ? unpack2 : code_bits == 4 ? unpack4 : unpack8;
  const uint8_t largest = kernel(packed, n_blocks, bias, out);
  const uint32_t done = n_blocks * per_block;
  const uint8_t rest =
      scalar_kernels()->unpack(packed + uint64_t{n_blocks} * 32, code_bits, cols - done, bias, out + done);
  return std::max(largest, rest);
}

AVX2 uint8_t largest(const uint8_t* bytes, uint64_t n) {
  __m256i value = _mm256_setzero_si256();
  const uint64_t whole = n / 32 * 32;
  for (uint64_t i = 0; i < whole; i += 32) value = _mm256_max_epu8(value, load32(bytes + i));
  return std::max(largest_of(value), scalar_kernels()->largest(bytes + whole, n - whole));
}

}  // namespace avx2
}  // namespace tinyqmoe

#endif  // defined(__x86_64__)
