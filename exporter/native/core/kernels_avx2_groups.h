// AVX2 and AVX-512: what the sums of groups add up to.
#ifndef TINYQMOE_CORE_KERNELS_AVX2_GROUPS_H_
#define TINYQMOE_CORE_KERNELS_AVX2_GROUPS_H_

#include <algorithm>

#include "kernels_avx2.h"

namespace tinyqmoe {
namespace avx2 {

// As widen_ue6m10.
AVX2_INLINE __m256 widen_codes(__m128i codes) {
  const __m256i wide = _mm256_cvtepu16_epi32(codes);
  const __m256i bits = _mm256_add_epi32(_mm256_slli_epi32(wide, kUe6m10Shift), _mm256_set1_epi32(kUe6m10Bias));
  const __m256i zeros = _mm256_cmpeq_epi32(wide, _mm256_setzero_si256());
  return _mm256_castsi256_ps(_mm256_andnot_si256(zeros, bits));
}

// The scales of four rows, of ue6m10: those of a group and, above them, of the next one.
struct CodedScales {
  const uint16_t* rows[kDotRows];

  AVX2_INLINE explicit CodedScales(const GroupsTask& task) {
    const uint16_t* const codes = static_cast<const uint16_t*>(task.stored_scales.values);
    for (uint32_t r = 0; r < kDotRows; ++r) rows[r] = codes + task.first_scales[r];
  }

  AVX2_INLINE __m256 two(uint64_t group) const {
    __m128i codes = _mm_cvtsi32_si128(load<int32_t>(rows[0] + group));
    codes = _mm_insert_epi32(codes, load<int32_t>(rows[1] + group), 1);
    codes = _mm_insert_epi32(codes, load<int32_t>(rows[2] + group), 2);
    codes = _mm_insert_epi32(codes, load<int32_t>(rows[3] + group), 3);
    const __m128i by_group = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    return widen_codes(_mm_shuffle_epi8(codes, by_group));
  }

  AVX2_INLINE __m128 one(uint64_t group) const {
    __m128i codes = _mm_cvtsi32_si128(rows[0][group]);
    codes = _mm_insert_epi16(codes, rows[1][group], 1);
    codes = _mm_insert_epi16(codes, rows[2][group], 2);
    codes = _mm_insert_epi16(codes, rows[3][group], 3);
    return _mm256_castps256_ps128(widen_codes(codes));
  }
};

// And of float32.
struct FloatScales {
  const float* rows[kDotRows];

  AVX2_INLINE explicit FloatScales(const GroupsTask& task) {
    const float* const scales = static_cast<const float*>(task.stored_scales.values);
    for (uint32_t r = 0; r < kDotRows; ++r) rows[r] = scales + task.first_scales[r];
  }

  AVX2_INLINE static __m128 pair(const float* a, const float* b) {
    return _mm_castsi128_ps(_mm_set_epi64x(load<int64_t>(b), load<int64_t>(a)));
  }

  AVX2_INLINE __m256 two(uint64_t group) const {
    const __m128 ab = pair(rows[0] + group, rows[1] + group), cd = pair(rows[2] + group, rows[3] + group);
    return _mm256_set_m128(_mm_shuffle_ps(ab, cd, 0xDD), _mm_shuffle_ps(ab, cd, 0x88));
  }

  AVX2_INLINE __m128 one(uint64_t group) const {
    return _mm_setr_ps(rows[0][group], rows[1][group], rows[2][group], rows[3][group]);
  }
};

// What the groups so far gave: the float of each one's sum of level * x, times its scale, one after the other.
template <typename RowScales>
struct Outputs {
  const int32_t* corrections;
  const RowScales scales;
  uint64_t group = 0;
  __m128 y = _mm_setzero_ps();

  AVX2_INLINE explicit Outputs(const GroupsTask& task) : corrections(task.corrections), scales(task) {}

  AVX2_INLINE void add_two(__m256i sums) {
    const __m256i levels = _mm256_add_epi32(sums, load32(corrections));
    const __m256 terms = _mm256_mul_ps(_mm256_cvtepi32_ps(levels), scales.two(group));
    y = _mm_add_ps(y, _mm256_castps256_ps128(terms));
    y = _mm_add_ps(y, _mm256_extractf128_ps(terms, 1));
    corrections += 2 * kDotRows;
    group += 2;
  }

  AVX2_INLINE void add_last(__m128i sums) {
    const __m128i levels = _mm_add_epi32(sums, load16(corrections));
    y = _mm_add_ps(y, _mm_mul_ps(_mm_cvtepi32_ps(levels), scales.one(group)));
  }
};

// Groups whose sums are there before they are added up; even, so that a strip of half blocks has whole ones.
constexpr uint32_t kStripGroups = 64;

// Sums::put(task, first, n, sums) puts the sums of offset * x of n groups from the first on, [n, kDotRows].
template <typename RowScales, typename Sums>
AVX2 void dot_with(GroupsTask* task) {
  Outputs<RowScales> outputs(*task);
  alignas(32) int32_t sums[kStripGroups * kDotRows];
  for (uint32_t first = 0; first < task->n_groups(); first += kStripGroups) {
    const uint32_t n = std::min(kStripGroups, task->n_groups() - first);
    Sums::put(*task, first, n, sums);
    uint32_t group = 0;
    for (; group + 2 <= n; group += 2) outputs.add_two(load32(sums + group * kDotRows));
    if (group < n) outputs.add_last(load16(sums + group * kDotRows));
  }
  _mm_storeu_ps(task->y, outputs.y);
}

template <typename Sums>
void dot_groups_of(GroupsTask* task) {
  const bool coded = task->stored_scales.type == TINYQMOE_SCALES_UE6M10;
  coded ? dot_with<CodedScales, Sums>(task) : dot_with<FloatScales, Sums>(task);
}

}  // namespace avx2
}  // namespace tinyqmoe
#endif  // TINYQMOE_CORE_KERNELS_AVX2_GROUPS_H_
