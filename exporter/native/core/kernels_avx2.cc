// AVX2. Every function carries the target attribute, so that the file needs no compiler flag and the rest of the
// library runs on any x86-64.
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>

#include "codes.h"
#include "kernels.h"

#define AVX2 __attribute__((target("avx2")))
#define AVX2_INLINE __attribute__((target("avx2"), always_inline)) inline

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

namespace tinyqmoe {
namespace {

AVX2_INLINE __m256i load32(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
AVX2_INLINE void store32(void* p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
AVX2_INLINE __m128i load16(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
AVX2_INLINE void store16(void* p, __m128i v) { _mm_storeu_si128(static_cast<__m128i*>(p), v); }

// Sums of two products, int16, to sums of four, int32.
AVX2_INLINE __m256i widen(__m256i pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }

AVX2_INLINE int32_t sum4(__m128i v) {
  v = _mm_add_epi32(v, _mm_shuffle_epi32(v, 0x4E));
  v = _mm_add_epi32(v, _mm_shuffle_epi32(v, 0xB1));
  return _mm_cvtsi128_si32(v);
}

AVX2_INLINE int32_t sum8(__m256i v) {
  return sum4(_mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
}

AVX2_INLINE uint8_t largest_of(__m256i v) {
  // The largest byte is the smallest of the complements; minpos finds the smallest of eight 16-bit words.
  const __m128i all = _mm_max_epu8(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  const __m128i complement = _mm_xor_si128(all, _mm_set1_epi8(-1));
  const __m128i smaller = _mm_min_epu8(complement, _mm_srli_epi16(complement, 8));
  return static_cast<uint8_t>(~_mm_cvtsi128_si32(_mm_minpos_epu16(smaller)));
}

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
AVX2 tinyqmoe_status expand_codes(const Dictionary& dictionary, const uint8_t* codes, uint32_t n_codes, uint32_t cols,
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

// Sums of products of one phrase: 16 or 32 bytes as 8 or 16 int16, widened to int32 by sum_pairs.
template <uint32_t kCap>
struct PhraseSum;

template <>
struct PhraseSum<16> {
  __m128i pairs = _mm_setzero_si128();
  __m128i total = _mm_setzero_si128();

  AVX2_INLINE void add(const uint8_t* phrase, const int8_t* x) {
    pairs = _mm_add_epi16(pairs, _mm_maddubs_epi16(load16(phrase), load16(x)));
  }
  AVX2_INLINE void flush() {
    total = _mm_add_epi32(total, _mm_madd_epi16(pairs, _mm_set1_epi16(1)));
    pairs = _mm_setzero_si128();
  }
  AVX2_INLINE int32_t sum() const { return sum4(total); }
};

template <>
struct PhraseSum<32> {
  __m256i pairs;
  __m256i total;

  AVX2_INLINE PhraseSum() : pairs(_mm256_setzero_si256()), total(_mm256_setzero_si256()) {}
  AVX2_INLINE void add(const uint8_t* phrase, const int8_t* x) {
    pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(load32(phrase), load32(x)));
  }
  AVX2_INLINE void flush() {
    total = _mm256_add_epi32(total, widen(pairs));
    pairs = _mm256_setzero_si256();
  }
  AVX2_INLINE int32_t sum() const { return sum8(total); }
};

template <uint32_t kBits, uint32_t kCap>
AVX2 tinyqmoe_status dot_codes(const Dictionary& dictionary, const uint8_t* codes, uint32_t n_codes, uint32_t cols,
                               const int8_t* x, int32_t* acc) {
  const uint8_t* const phrases = dictionary.phrases;
  const uint8_t* const lengths = dictionary.lengths;
  const uint32_t codes_per_flush = int16_steps(dictionary.shape.n_levels) / kCodesPerCheck * kCodesPerCheck;
  PhraseSum<kCap> sum;
  RowLengths row;
  uint32_t i = 0;
  while (i + kCodesPerCheck <= n_codes && row.position < cols) {
    const uint32_t end = std::min(n_codes - n_codes % kCodesPerCheck, i + codes_per_flush);
    for (; i < end && row.position < cols; i += kCodesPerCheck) {
      const CodeGroup<kBits> group(codes + uint64_t{i} * kBits / 8);
      for (uint32_t k = 0; k < kCodesPerCheck; ++k) {
        sum.add(phrases + uint64_t{group[k]} * kCap, x + row.position);
        row.add(lengths[group[k]]);
      }
    }
    sum.flush();
  }
  for (; i < n_codes && row.position < cols; ++i) {
    const uint32_t code = code_at(codes, kBits, i);
    sum.add(phrases + uint64_t{code} * kCap, x + row.position);
    row.add(lengths[code]);
  }
  sum.flush();
  if (i == n_codes && row.fit(cols)) {
    *acc = sum.sum();
    return TINYQMOE_OK;
  }
  return scalar_kernels()->dot_codes(dictionary, codes, n_codes, cols, x, acc);
}

// One row of either function a width and a cap.
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

// Plane k of packed bytes: the offsets at bits k * kBits of each byte.
template <uint32_t kBits>
AVX2_INLINE __m256i plane(__m256i packed, int k) {
  return _mm256_and_si256(_mm256_srli_epi16(packed, k * static_cast<int>(kBits)),
                          _mm256_set1_epi8((1 << kBits) - 1));
}

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

template <uint32_t kBits>
AVX2 uint8_t dot_packed_bits(const uint8_t* packed, uint32_t n_blocks, const int8_t* packed_x, int32_t* acc) {
  constexpr uint32_t kPlanes = 8 / kBits;
  constexpr uint32_t kBlocksPerFlush = int16_steps(1u << kBits) / kPlanes;
  __m256i total = _mm256_setzero_si256();
  __m256i largest = _mm256_setzero_si256();
  for (uint32_t block = 0; block < n_blocks;) {
    const uint32_t end = std::min(n_blocks, block + kBlocksPerFlush);
    __m256i pairs = _mm256_setzero_si256();
    for (; block < end; ++block, packed += 32) {
      const __m256i v = load32(packed);
      for (uint32_t k = 0; k < kPlanes; ++k, packed_x += 32) {
        const __m256i offsets = plane<kBits>(v, static_cast<int>(k));
        largest = _mm256_max_epu8(largest, offsets);
        pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(offsets, load32(packed_x)));
      }
    }
    total = _mm256_add_epi32(total, widen(pairs));
  }
  *acc = sum8(total);
  return largest_of(largest);
}

uint8_t dot_packed(const uint8_t* packed, uint32_t code_bits, uint32_t n_blocks, const int8_t* packed_x,
                   int32_t* acc) {
  const auto kernel = code_bits == 2 ? dot_packed_bits<2> : dot_packed_bits<4>;
  return kernel(packed, n_blocks, packed_x, acc);
}

AVX2 uint8_t largest(const uint8_t* bytes, uint64_t n) {
  __m256i value = _mm256_setzero_si256();
  const uint64_t whole = n / 32 * 32;
  for (uint64_t i = 0; i < whole; i += 32) value = _mm256_max_epu8(value, load32(bytes + i));
  return std::max(largest_of(value), scalar_kernels()->largest(bytes + whole, n - whole));
}

// ---- products ----

// Up to 128 levels: offsets are small, so sums of two products may add up as int16 for some steps.
template <uint32_t kTokens>
AVX2_INLINE void dot_narrow(const DotTask& task, uint32_t n, __m256i total[kDotRows][kTokens]) {
  for (uint32_t i = 0; i < n;) {
    const uint32_t end = std::min<uint64_t>(n, i + uint64_t{task.steps} * 32);
    __m256i pairs[kDotRows][kTokens];
    for (auto& row : pairs) {
      for (__m256i& p : row) p = _mm256_setzero_si256();
    }
    for (; i < end; i += 32) {
      __m256i x[kTokens];
      for (uint32_t t = 0; t < kTokens; ++t) x[t] = load32(task.x[t] + i);
      for (uint32_t r = 0; r < kDotRows; ++r) {
        const __m256i offsets = load32(task.offsets[r] + i);
        for (uint32_t t = 0; t < kTokens; ++t) {
          pairs[r][t] = _mm256_add_epi16(pairs[r][t], _mm256_maddubs_epi16(offsets, x[t]));
        }
      }
    }
    for (uint32_t r = 0; r < kDotRows; ++r) {
      for (uint32_t t = 0; t < kTokens; ++t) total[r][t] = _mm256_add_epi32(total[r][t], widen(pairs[r][t]));
    }
  }
}

// More levels: |offset - 128| <= 128 times |x| <= 127 with the sign moved to x, so two products fit an int16.
template <uint32_t kTokens>
AVX2_INLINE void dot_wide(const DotTask& task, uint32_t n, __m256i total[kDotRows][kTokens]) {
  const __m256i flip = _mm256_set1_epi8(-128);
  for (uint32_t i = 0; i < n; i += 32) {
    for (uint32_t r = 0; r < kDotRows; ++r) {
      const __m256i w = _mm256_xor_si256(load32(task.offsets[r] + i), flip);
      const __m256i magnitude = _mm256_abs_epi8(w);
      for (uint32_t t = 0; t < kTokens; ++t) {
        const __m256i x = _mm256_sign_epi8(load32(task.x[t] + i), w);
        total[r][t] = _mm256_add_epi32(total[r][t], widen(_mm256_maddubs_epi16(magnitude, x)));
      }
    }
  }
}

template <uint32_t kTokens>
AVX2_INLINE void dot_whole(const DotTask& task, uint32_t n, __m256i total[kDotRows][kTokens]) {
  if (task.shift == 0) {
    dot_narrow<kTokens>(task, n, total);
  } else {
    dot_wide<kTokens>(task, n, total);
  }
}

template <uint32_t kTokens>
AVX2 void dot_tokens(DotTask* task) {
  __m256i total[kDotRows][kTokens];
  for (auto& row : total) {
    for (__m256i& t : row) t = _mm256_setzero_si256();
  }
  const uint32_t whole = task->n / 32 * 32;
  const uint32_t rest = task->n - whole;
  dot_whole<kTokens>(*task, whole, total);
  if (rest > 0) {
    // Copies, so that nothing past a row is read and nothing past a group is multiplied.
    uint8_t offsets[kDotRows][32] = {};
    int8_t x[kTokens][32] = {};
    DotTask last = *task;
    for (uint32_t r = 0; r < kDotRows; ++r) {
      std::memcpy(offsets[r], task->offsets[r] + whole, rest);
      last.offsets[r] = offsets[r];
    }
    for (uint32_t t = 0; t < kTokens; ++t) {
      std::memcpy(x[t], task->x[t] + whole, rest);
      last.x[t] = x[t];
    }
    dot_whole<kTokens>(last, 32, total);
  }
  for (uint32_t r = 0; r < kDotRows; ++r) {
    for (uint32_t t = 0; t < kTokens; ++t) task->acc[r][t] = sum8(total[r][t]);
  }
}

void dot(DotTask* task, uint32_t n_tokens) { n_tokens == 1 ? dot_tokens<1>(task) : dot_tokens<2>(task); }

AVX2 void dot_f32(const float* const w[kDotRows], const float* x, uint32_t n, float sums[kDotRows]) {
  __m256 p[kDotRows] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
  const uint32_t whole = n / 8 * 8;
  for (uint32_t i = 0; i < whole; i += 8) {
    const __m256 v = _mm256_loadu_ps(x + i);
    for (uint32_t r = 0; r < kDotRows; ++r) {
      p[r] = _mm256_add_ps(p[r], _mm256_mul_ps(_mm256_loadu_ps(w[r] + i), v));
    }
  }
  float x_rest[8] = {};
  std::memcpy(x_rest, x + whole, (n - whole) * sizeof(float));
  for (uint32_t r = 0; r < kDotRows; ++r) {
    // Zeros add nothing: a partial sum is never -0.
    float w_rest[8] = {};
    std::memcpy(w_rest, w[r] + whole, (n - whole) * sizeof(float));
    const __m256 all = _mm256_add_ps(p[r], _mm256_mul_ps(_mm256_loadu_ps(w_rest), _mm256_loadu_ps(x_rest)));
    const __m128 q = _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
    const __m128 s = _mm_add_ps(q, _mm_movehl_ps(q, q));
    sums[r] = _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
}

// ---- activations ----

AVX2 uint32_t abs_max_bits(const float* x, uint32_t n) {
  const __m256i mask = _mm256_set1_epi32(0x7FFFFFFF);
  __m256i value = _mm256_setzero_si256();
  const uint32_t whole = n / 8 * 8;
  for (uint32_t i = 0; i < whole; i += 8) {
    value = _mm256_max_epi32(value, _mm256_and_si256(load32(x + i), mask));
  }
  alignas(32) uint32_t lanes[8];
  store32(lanes, value);
  return std::max(*std::max_element(lanes, lanes + 8), scalar_kernels()->abs_max_bits(x + whole, n - whole));
}

AVX2 void quantize(const float* x, uint32_t n, float factor, int8_t* out) {
  const __m256 factors = _mm256_set1_ps(factor);
  const uint32_t whole = n / 16 * 16;
  for (uint32_t i = 0; i < whole; i += 16) {
    const __m256i low = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i), factors));
    const __m256i high = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i + 8), factors));
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xD8);
    store16(out + i, _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
  }
  scalar_kernels()->quantize(x + whole, n - whole, factor, out + whole);
}

constexpr Kernels kAvx2 = {expand_codes_any, dot_codes_any, unpack,       dot_packed, largest,
                           dot,              dot_f32,       abs_max_bits, quantize};

}  // namespace

const Kernels* avx2_kernels() { return &kAvx2; }

}  // namespace tinyqmoe

#endif  // defined(__x86_64__)
