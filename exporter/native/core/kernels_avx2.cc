// AVX2: products, and activations.
#if defined(__x86_64__)

#include "kernels_avx2.h"

#include <algorithm>
#include <cstring>

namespace tinyqmoe {
namespace avx2 {
namespace {

// As sum8, where the sum may need more than 32 bits.
AVX2_INLINE int64_t sum8_wide(__m256i lanes) {
  const __m256i halves = _mm256_add_epi64(_mm256_cvtepi32_epi64(_mm256_castsi256_si128(lanes)),
                                          _mm256_cvtepi32_epi64(_mm256_extracti128_si256(lanes, 1)));
  const __m128i pair = _mm_add_epi64(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
  return _mm_cvtsi128_si64(pair) + _mm_extract_epi64(pair, 1);
}

// Products of 16 offsets and 16 whole activations, two to a lane.
AVX2_INLINE __m256i dot16(const uint8_t* offsets, const int16_t* x) {
  return _mm256_madd_epi16(_mm256_cvtepu8_epi16(load16(offsets)), load32(x));
}

// How many results of dot16 a lane can hold.
constexpr uint32_t kWideSteps = 128;
static_assert(int64_t{kWideSteps} * 2 * 255 * kMostActivation <= INT32_MAX);

// ---- packed offsets ----

// Sums of a row by lanes, of either plane.
struct PlaneSums {
  __m256i high, low;
};

using RowKernel = PlaneSums (*)(const uint8_t* packed, uint32_t n_blocks, const int8_t* packed_x);

// One row after the other, and what four of them come to together.
template <RowKernel kRow>
AVX2 void dot_rows(const PackedTask& task) {
  uint32_t row = 0;
  for (; row + kDotRows <= task.n_rows; row += kDotRows) {
    __m256i high[kDotRows], low[kDotRows];
    for (uint32_t r = 0; r < kDotRows; ++r) {
      const PlaneSums sums = kRow(task.row(row + r), task.n_blocks, task.packed_x);
      high[r] = sums.high;
      low[r] = sums.low;
    }
    store32(task.sums + row, _mm256_add_epi64(_mm256_slli_epi64(four_sums(high), 8), four_sums(low)));
  }
  for (; row < task.n_rows; ++row) {
    const PlaneSums sums = kRow(task.row(row), task.n_blocks, task.packed_x);
    task.sums[row] = 256 * int64_t{sum8(sums.high)} + sum8(sums.low);
  }
}

template <uint32_t kBits>
AVX2_INLINE PlaneSums dot_packed_row(const uint8_t* packed, uint32_t n_blocks, const int8_t* packed_x) {
  constexpr uint32_t kPlanes = 8 / kBits;
  constexpr uint32_t kBlocksPerFlush = int16_steps(1u << kBits) / kPlanes;
  PlaneSums sums = {_mm256_setzero_si256(), _mm256_setzero_si256()};
  for (uint32_t block = 0; block < n_blocks;) {
    const uint32_t end = std::min(n_blocks, block + kBlocksPerFlush);
    __m256i high_pairs = _mm256_setzero_si256();
    __m256i low_pairs = _mm256_setzero_si256();
    for (; block < end; ++block, packed += 32) {
      prefetch(packed);
      const __m256i v = load32(packed);
      for (uint32_t k = 0; k < kPlanes; ++k, packed_x += 64) {
        const __m256i offsets = plane<kBits>(v, static_cast<int>(k));
        high_pairs = _mm256_add_epi16(high_pairs, _mm256_maddubs_epi16(offsets, load32(packed_x)));
        low_pairs = _mm256_add_epi16(low_pairs, _mm256_maddubs_epi16(offsets, load32(packed_x + 32)));
      }
      keep(&high_pairs);
      keep(&low_pairs);
    }
    sums.high = _mm256_add_epi32(sums.high, widen(high_pairs));
    sums.low = _mm256_add_epi32(sums.low, widen(low_pairs));
  }
  return sums;
}

void dot_packed(const PackedTask& task) {
  (task.code_bits == 2 ? dot_rows<dot_packed_row<2>> : dot_rows<dot_packed_row<4>>)(task);
}

// ---- base 3 ----

AVX2_INLINE PlaneSums dot_base3_row(const uint8_t* packed, uint32_t n_blocks, const int8_t* packed_x) {
  constexpr uint32_t kBlocksPerFlush = int16_steps(3) / kBase3Digits;
  PlaneSums sums = {_mm256_setzero_si256(), _mm256_setzero_si256()};
  for (uint32_t block = 0; block < n_blocks;) {
    const uint32_t end = std::min(n_blocks, block + kBlocksPerFlush);
    __m256i high_pairs = _mm256_setzero_si256();
    __m256i low_pairs = _mm256_setzero_si256();
    for (; block < end; ++block, packed += kBase3Block) {
      prefetch(packed);
      const int8_t* x = packed_x + base3_x_at(block);
      Base3Digits digits(packed);
      for (uint32_t digit = 0; digit < kBase3Digits; ++digit, x += 4 * kBase3Block) {
        const __m256i offsets = digits.next();
        high_pairs = _mm256_add_epi16(high_pairs, _mm256_maddubs_epi16(offsets, load32(x)));
        low_pairs = _mm256_add_epi16(low_pairs, _mm256_maddubs_epi16(offsets, load32(x + 2 * kBase3Block)));
      }
      keep(&high_pairs);
      keep(&low_pairs);
    }
    sums.high = _mm256_add_epi32(sums.high, widen(high_pairs));
    sums.low = _mm256_add_epi32(sums.low, widen(low_pairs));
  }
  return sums;
}

// ---- products ----

// Up to kNarrowLevels levels: offsets meet each plane, 32 at a time, and sums of two products add up as int16 for some
// steps.
struct NarrowSums {
  __m256i high[kDotRows];
  __m256i low[kDotRows];
};

AVX2_INLINE void add_narrow(const DotTask& task, uint32_t n, NarrowSums* sums) {
  const uint32_t columns_per_flush = int16_steps(task.n_levels) * 32;
  for (uint32_t i = 0; i < n;) {
    const uint32_t end = std::min(n, i + columns_per_flush);
    NarrowSums pairs;
    for (uint32_t r = 0; r < kDotRows; ++r) pairs.high[r] = pairs.low[r] = _mm256_setzero_si256();
    for (; i < end; i += 32) {
      const __m256i high = load32(task.x.high + i);
      const __m256i low = load32(task.x.low + i);
      for (uint32_t r = 0; r < kDotRows; ++r) {
        const __m256i offsets = load32(task.offsets[r] + i);
        pairs.high[r] = _mm256_add_epi16(pairs.high[r], _mm256_maddubs_epi16(offsets, high));
        pairs.low[r] = _mm256_add_epi16(pairs.low[r], _mm256_maddubs_epi16(offsets, low));
        keep(&pairs.high[r]);
        keep(&pairs.low[r]);
      }
    }
    for (uint32_t r = 0; r < kDotRows; ++r) {
      sums->high[r] = _mm256_add_epi32(sums->high[r], widen(pairs.high[r]));
      sums->low[r] = _mm256_add_epi32(sums->low[r], widen(pairs.low[r]));
    }
  }
}

// More levels: offsets as int16 meet the whole activations. A row after the other, from its beginning to its end, is what
// memory delivers fastest; rows side by side took 1.4 times as long.
AVX2_INLINE int64_t dot_wide_row(const uint8_t* offsets, const int16_t* x, uint32_t n) {
  constexpr uint32_t kLanes = 4;
  int64_t sum = 0;
  for (uint32_t i = 0; i < n;) {
    const uint32_t end = std::min(n, i + kWideSteps * 16);
    __m256i lanes[kLanes];
    for (__m256i& lane : lanes) lane = _mm256_setzero_si256();
    for (; i + kLanes * 16 <= end; i += kLanes * 16) {
      prefetch(offsets + i);
      for (uint32_t k = 0; k < kLanes; ++k) {
        lanes[k] = _mm256_add_epi32(lanes[k], dot16(offsets + i + 16 * k, x + i + 16 * k));
      }
    }
    for (; i < end; i += 16) lanes[0] = _mm256_add_epi32(lanes[0], dot16(offsets + i, x + i));
    const __m256i first = _mm256_add_epi32(lanes[0], lanes[1]), second = _mm256_add_epi32(lanes[2], lanes[3]);
    sum += sum8_wide(_mm256_add_epi32(first, second));
  }
  return sum;
}

// The last columns of a task, copied, so that nothing past a row is read and nothing past a group is multiplied.
struct TaskTail {
  uint8_t offsets[kDotRows][32] = {};
  int16_t whole[32] = {};
  int8_t high[32] = {};
  int8_t low[32] = {};
  DotTask task;

  TaskTail(const DotTask& from, uint32_t begin) : task(from) {
    const uint32_t n = from.n - begin;
    for (uint32_t r = 0; r < kDotRows; ++r) {
      std::memcpy(offsets[r], from.offsets[r] + begin, n);
      task.offsets[r] = offsets[r];
    }
    std::memcpy(whole, from.x.whole + begin, n * sizeof *whole);
    std::memcpy(high, from.x.high + begin, n);
    std::memcpy(low, from.x.low + begin, n);
    task.x = {whole, high, low};
  }
};

AVX2 void dot_narrow(DotTask* task) {
  const uint32_t body = task->n / 32 * 32;
  NarrowSums sums;
  for (uint32_t r = 0; r < kDotRows; ++r) sums.high[r] = sums.low[r] = _mm256_setzero_si256();
  add_narrow(*task, body, &sums);
  if (body < task->n) add_narrow(TaskTail(*task, body).task, 32, &sums);
  for (uint32_t r = 0; r < kDotRows; ++r) task->sums[r] = 256 * int64_t{sum8(sums.high[r])} + sum8(sums.low[r]);
}

AVX2 void dot_wide(DotTask* task) {
  const uint32_t body = task->n / 32 * 32;
  for (uint32_t r = 0; r < kDotRows; ++r) task->sums[r] = dot_wide_row(task->offsets[r], task->x.whole, body);
  if (body == task->n) return;
  const TaskTail tail(*task, body);
  for (uint32_t r = 0; r < kDotRows; ++r) task->sums[r] += dot_wide_row(tail.task.offsets[r], tail.task.x.whole, 32);
}

void dot(DotTask* task) { task->n_levels <= kNarrowLevels ? dot_narrow(task) : dot_wide(task); }

}  // namespace

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

AVX2 void quantize(const float* x, uint32_t n, float factor, int16_t* whole, int8_t* high, int8_t* low) {
  const __m256 factors = _mm256_set1_ps(factor);
  const uint32_t body = n / 16 * 16;
  for (uint32_t i = 0; i < body; i += 16) {
    const __m256i first = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i), factors));
    const __m256i second = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i + 8), factors));
    const __m256i q = _mm256_permute4x64_epi64(_mm256_packs_epi32(first, second), 0xD8);
    const __m256i h = _mm256_srai_epi16(_mm256_add_epi16(q, _mm256_set1_epi16(128)), 8);
    const __m256i l = _mm256_sub_epi16(q, _mm256_slli_epi16(h, 8));
    const __m256i planes = _mm256_permute4x64_epi64(_mm256_packs_epi16(h, l), 0xD8);
    store32(whole + i, q);
    store16(high + i, _mm256_castsi256_si128(planes));
    store16(low + i, _mm256_extracti128_si256(planes, 1));
  }
  scalar_kernels()->quantize(x + body, n - body, factor, whole + body, high + body, low + body);
}

}  // namespace avx2

const Kernels* avx2_kernels() {
  static constexpr Kernels kernels = {
      avx2::expand_phrases, avx2::expand_base3,         avx2::unpack,
      avx2::pack,           avx2::pack_x,               avx2::dot_packed,
      avx2::dot_rows<avx2::dot_base3_row>, avx2::unpack_clipped, avx2::dot_clipped,
      avx2::dot,            avx2::dot_groups,           avx2::dot_batch,
      avx2::dot_batch_groups, avx2::dot_f32,            avx2::abs_max_bits,
      avx2::quantize};
  return &kernels;
}

}  // namespace tinyqmoe

#endif  // defined(__x86_64__)
