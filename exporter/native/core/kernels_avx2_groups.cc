// AVX2: rows with a scale for each group of columns.
#if defined(__x86_64__)

#include "kernels_avx2.h"

namespace tinyqmoe {
namespace avx2 {
namespace {

// Sums of two products or more of a row's offsets and each plane, int16.
struct Pairs {
  __m256i high, low;
};

AVX2_INLINE Pairs add(Pairs a, Pairs b) { return {_mm256_add_epi16(a.high, b.high), _mm256_add_epi16(a.low, b.low)}; }

AVX2_INLINE Pairs pairs_of(__m256i offsets, const int8_t* high, const int8_t* low) {
  return {_mm256_maddubs_epi16(offsets, load32(high)), _mm256_maddubs_epi16(offsets, load32(low))};
}

// Sums of offset * x, int32.
AVX2_INLINE __m256i of_planes(Pairs p) {
  return _mm256_add_epi32(_mm256_madd_epi16(p.high, _mm256_set1_epi16(256)), widen(p.low));
}

// Offsets of few levels: int16s can add up all pairs of a group.
struct FewLevels {
  static constexpr uint32_t kPlanes = 1;
  static constexpr uint32_t kMost = 16;
  static_assert(int16_steps(kMost) * 32 >= kMostGroup);

  AVX2_INLINE static Pairs pairs(const GroupsTask& task, uint32_t r, uint64_t i) {
    return pairs_of(load32(task.rows[r] + i), task.x.high + i, task.x.low + i);
  }

  AVX2_INLINE static void group(const GroupsTask& task, uint64_t begin, __m256i lanes[kDotRows]) {
    Pairs sums[kDotRows];
    for (uint32_t r = 0; r < kDotRows; ++r) sums[r] = pairs(task, r, begin);
    for (uint64_t i = begin + 32; i < begin + task.group_size; i += 32) {
      for (uint32_t r = 0; r < kDotRows; ++r) sums[r] = add(sums[r], pairs(task, r, i));
    }
    for (uint32_t r = 0; r < kDotRows; ++r) lanes[r] = of_planes(sums[r]);
  }
};

struct ManyLevels {
  static constexpr uint32_t kPlanes = 1;

  AVX2_INLINE static void group(const GroupsTask& task, uint64_t begin, __m256i lanes[kDotRows]) {
    for (uint32_t r = 0; r < kDotRows; ++r) lanes[r] = _mm256_setzero_si256();
    for (uint64_t i = begin; i < begin + task.group_size; i += 16) {
      const __m256i x = load32(task.x.whole + i);
      for (uint32_t r = 0; r < kDotRows; ++r) {
        const __m256i offsets = _mm256_cvtepu8_epi16(load16(task.rows[r] + i));
        lanes[r] = _mm256_add_epi32(lanes[r], _mm256_madd_epi16(offsets, x));
      }
    }
  }
};

// Groups of one block or, if kMany, of several. A place in a row is counted in bytes.
template <uint32_t kBits, bool kMany>
struct Packed {
  static constexpr uint32_t kPlanes = 8 / kBits;
  static_assert(int16_steps(1u << kBits) * 32 >= kMostGroup);

  AVX2_INLINE static Pairs pairs(const GroupsTask& task, uint32_t r, uint64_t i) {
    prefetch(task.rows[r] + i);
    const __m256i packed = load32(task.rows[r] + i);
    const int8_t* const x = task.packed_x + 2 * kPlanes * i;
    Pairs sums = pairs_of(plane<kBits>(packed, 0), x, x + 32);
    for (uint32_t k = 1; k < kPlanes; ++k) {
      sums = add(sums, pairs_of(plane<kBits>(packed, static_cast<int>(k)), x + 64 * k, x + 64 * k + 32));
    }
    return sums;
  }

  AVX2_INLINE static void group(const GroupsTask& task, uint64_t begin, __m256i lanes[kDotRows]) {
    if constexpr (!kMany) {
      for (uint32_t r = 0; r < kDotRows; ++r) lanes[r] = of_planes(pairs(task, r, begin));
    } else {
      Pairs sums[kDotRows];
      for (uint32_t r = 0; r < kDotRows; ++r) sums[r] = pairs(task, r, begin);
      for (uint64_t i = begin + 32; i < begin + task.group_size / kPlanes; i += 32) {
        for (uint32_t r = 0; r < kDotRows; ++r) sums[r] = add(sums[r], pairs(task, r, i));
      }
      for (uint32_t r = 0; r < kDotRows; ++r) lanes[r] = of_planes(sums[r]);
    }
  }
};

// As sums_of_halves, in less time: a vphaddd is two shuffles and an addition, and something besides.
AVX2_INLINE __m256i shuffled_sums(const __m256i lanes[kDotRows]) {
  const __m256i first = _mm256_add_epi32(_mm256_unpacklo_epi32(lanes[0], lanes[1]),
                                         _mm256_unpackhi_epi32(lanes[0], lanes[1]));
  const __m256i last = _mm256_add_epi32(_mm256_unpacklo_epi32(lanes[2], lanes[3]),
                                        _mm256_unpackhi_epi32(lanes[2], lanes[3]));
  return _mm256_add_epi32(_mm256_unpacklo_epi64(first, last), _mm256_unpackhi_epi64(first, last));
}

// Sums of a group that begins at this byte of four rows, and above them those of the next group.
template <typename Rows>
struct Groups {
  static constexpr uint32_t kPlanes = Rows::kPlanes;

  AVX2_INLINE static __m256i two(const GroupsTask& task, uint64_t begin) {
    __m256i lanes[kDotRows];
    Rows::group(task, begin, lanes);
    const __m256i a = shuffled_sums(lanes);
    Rows::group(task, begin + task.group_size / kPlanes, lanes);
    const __m256i b = shuffled_sums(lanes);
    return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
  }

  AVX2_INLINE static __m128i one(const GroupsTask& task, uint64_t begin) {
    __m256i lanes[kDotRows];
    Rows::group(task, begin, lanes);
    return four_sums32(lanes);
  }
};

// Groups of half a block: lanes of its lower and upper bytes are two groups.
template <uint32_t kBits>
struct HalfBlocks {
  static constexpr uint32_t kPlanes = 8 / kBits;

  AVX2_INLINE static __m256i two(const GroupsTask& task, uint64_t begin) {
    __m256i lanes[kDotRows];
    Packed<kBits, false>::group(task, begin, lanes);
    return shuffled_sums(lanes);
  }

  AVX2_INLINE static __m128i one(const GroupsTask& task, uint64_t begin) {
    return _mm256_castsi256_si128(two(task, begin));
  }
};

// As widen_ue6m10.
AVX2_INLINE __m256 widen_codes(__m128i codes) {
  const __m256i wide = _mm256_cvtepu16_epi32(codes);
  const __m256i bits = _mm256_add_epi32(_mm256_slli_epi32(wide, 13), _mm256_set1_epi32((127 - 47) << 23));
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

template <typename RowScales, typename Sums>
AVX2 void dot_with(GroupsTask* task) {
  Outputs<RowScales> outputs(*task);
  const uint64_t size = task->group_size / Sums::kPlanes, end = task->cols / Sums::kPlanes;  // in bytes
  uint64_t begin = 0;
  for (; begin < end - size; begin += 2 * size) outputs.add_two(Sums::two(*task, begin));
  if (begin < end) outputs.add_last(Sums::one(*task, begin));
  _mm_storeu_ps(task->y, outputs.y);
}

template <typename Sums>
void dot_groups_of(GroupsTask* task) {
  const bool coded = task->stored_scales.type == TINYQMOE_SCALES_UE6M10;
  coded ? dot_with<CodedScales, Sums>(task) : dot_with<FloatScales, Sums>(task);
}

template <uint32_t kBits>
void dot_packed_groups(GroupsTask* task) {
  if (task->has_half_blocks()) return dot_groups_of<HalfBlocks<kBits>>(task);
  const bool many = task->group_size * kBits > kPackedBlock * 8;
  many ? dot_groups_of<Groups<Packed<kBits, true>>>(task) : dot_groups_of<Groups<Packed<kBits, false>>>(task);
}

}  // namespace

void dot_groups(GroupsTask* task) {
  if (task->bits == 2) return dot_packed_groups<2>(task);
  if (task->bits == 4) return dot_packed_groups<4>(task);
  task->n_levels <= FewLevels::kMost ? dot_groups_of<Groups<FewLevels>>(task) : dot_groups_of<Groups<ManyLevels>>(task);
}

}  // namespace avx2
}  // namespace tinyqmoe

#endif  // defined(__x86_64__)
