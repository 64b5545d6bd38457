// AVX2: rows times many tokens.
#if defined(__x86_64__)

#include "kernels_avx2.h"
#include "kernels_batch.h"

namespace tinyqmoe {
namespace avx2 {
namespace {

constexpr uint32_t kStep = 4;               // columns that are multiplied between two looks at the end
constexpr uint32_t kBlock = 16;             // columns that are put in order at once

AVX2_INLINE void interleave(__m256i v[kHalf]) {
  __m256i out[kHalf];
  for (uint32_t k = 0; k < kHalf / 2; ++k) {
    out[2 * k] = _mm256_unpacklo_epi16(v[k], v[k + kHalf / 2]);
    out[2 * k + 1] = _mm256_unpackhi_epi16(v[k], v[k + kHalf / 2]);
  }
  std::copy_n(out, kHalf, v);
}

// Columns i..i+15 of all rows. Registers of 8 rows, and of the 8 others above them, are interleaved three times, which
// turns rows of pairs into pairs of rows.
AVX2_INLINE void fill_block(const uint8_t* const rows[kBatchRows], uint32_t i, int32_t level_min, PairOfColumns* out) {
  __m256i v[kHalf];
  for (uint32_t r = 0; r < kHalf; ++r) v[r] = _mm256_set_m128i(load16(rows[r + kHalf] + i), load16(rows[r] + i));
  interleave(v), interleave(v), interleave(v);
  const __m256i bias = _mm256_set1_epi16(static_cast<int16_t>(level_min));
  for (uint32_t k = 0; k < kBlock / 2; ++k) {
    const __m128i lower = _mm256_castsi256_si128(v[k]), upper = _mm256_extracti128_si256(v[k], 1);
    store32(out[k].levels[0], _mm256_add_epi16(_mm256_cvtepu8_epi16(lower), bias));
    store32(out[k].levels[kHalf], _mm256_add_epi16(_mm256_cvtepu8_epi16(upper), bias));
  }
}

// The sums of a token, a lane each row.
struct Sums {
  __m256i first, second;

  AVX2_INLINE void clear() { first = second = _mm256_setzero_si256(); }

  // Adds the products of two columns.
  AVX2_INLINE void add(__m256i first_levels, __m256i second_levels, const int16_t* x) {
    __m256i pair = _mm256_set1_epi32(load<int32_t>(x));
    keep(&pair);
    add_products(first_levels, pair, &first);
    add_products(second_levels, pair, &second);
  }

 private:
  // Without `keep`, gcc adds up products first, which takes more registers than there are.
  AVX2_INLINE static void add_products(__m256i levels, __m256i x, __m256i* sums) {
    __m256i products = _mm256_madd_epi16(levels, x);
    keep(&products);
    *sums = _mm256_add_epi32(*sums, products);
    keep(sums);
  }
};

// What a strip's products come to still fits an int32.
struct Tile {
  static constexpr uint32_t kColumns = 512;
  static constexpr uint32_t kTokens = 4;  // whose sums are in registers
  static_assert(int64_t{kColumns} * 128 * kMostActivation <= INT32_MAX);

  PairOfColumns pairs[kColumns / 2];

  void fill(const BatchTask& task, uint32_t begin, uint32_t n) { fill_pairs(task, begin, n, pairs); }

  template <uint32_t kMany, bool kGroups>
  AVX2 void add(BatchPart<kGroups> part) const {
    const int16_t* x[kMany];
    for (uint32_t t = 0; t < kMany; ++t) x[t] = part.whole(t);
    const float* scales = part.scales();
    for (uint64_t i = 0; i < part.n; scales += kGroups ? kBatchRows : 0) {
      const uint64_t end = part.end_of_sum(i);
      const PairOfColumns* pair = pairs + i / 2;
      Sums sums[kMany];
      for (uint32_t t = 0; t < kMany; ++t) sums[t].clear();
      for (; i < end; i += kStep) {
        for (uint32_t k = 0; k < kStep; k += 2, ++pair) {
          const __m256i first = load32(pair->levels[0]), second = load32(pair->levels[kHalf]);
          for (uint32_t t = 0; t < kMany; ++t) sums[t].add(first, second, x[t] + i + k);
        }
      }
      for (uint32_t t = 0; t < kMany; ++t) put_sums(sums[t].first, sums[t].second, scales, part.results(t));
    }
  }
};

}  // namespace

AVX2 void fill_pairs(const BatchTask& task, uint32_t begin, uint32_t n, PairOfColumns* pairs) {
  const uint8_t* rows[kBatchRows];
  for (uint32_t r = 0; r < kBatchRows; ++r) rows[r] = task.offsets[r] + begin;
  const uint32_t body = n / kBlock * kBlock;
  for (uint32_t i = 0; i < body; i += kBlock) fill_block(rows, i, task.level_min, pairs + i / 2);
  if (body == n) return;
  uint8_t last[kBatchRows][kBlock] = {};
  for (uint32_t r = 0; r < kBatchRows; ++r) {
    std::copy(rows[r] + body, rows[r] + n, last[r]);
    rows[r] = last[r];
  }
  fill_block(rows, 0, task.level_min, pairs + body / 2);
  for (uint32_t i = n; i % kStep != 0; ++i) {
    for (uint32_t r = 0; r < kBatchRows; ++r) pairs[i / 2].levels[r][i % 2] = 0;
  }
}

void dot_batch(const BatchTask& task) { multiply_tiles<Tile, false>(task); }
void dot_batch_groups(const BatchTask& task) { multiply_tiles<Tile, true>(task); }

}  // namespace avx2
}  // namespace tinyqmoe

#endif  // defined(__x86_64__)
