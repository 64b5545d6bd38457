// AVX2: rows with a scale for each group of columns.
#if defined(__x86_64__)

#include "kernels_avx2_groups.h"

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

// What dot_groups_of takes: the sums of a strip's groups, two at a time.
template <typename Sums>
struct Strip {
  AVX2 static void put(const GroupsTask& task, uint32_t first, uint32_t n, int32_t* sums) {
    const uint64_t size = task.group_size / Sums::kPlanes;  // in bytes
    uint64_t begin = first * size;
    uint32_t group = 0;
    for (; group + 2 <= n; group += 2, begin += 2 * size) store32(sums + group * kDotRows, Sums::two(task, begin));
    if (group < n) store16(sums + group * kDotRows, Sums::one(task, begin));
  }
};

template <uint32_t kBits>
void dot_packed_groups(GroupsTask* task) {
  if (task->has_half_blocks()) return dot_groups_of<Strip<HalfBlocks<kBits>>>(task);
  const bool many = task->group_size * kBits > kPackedBlock * 8;
  many ? dot_groups_of<Strip<Groups<Packed<kBits, true>>>>(task)
       : dot_groups_of<Strip<Groups<Packed<kBits, false>>>>(task);
}

}  // namespace

void dot_groups(GroupsTask* task) {
  if (task->bits == 2) return dot_packed_groups<2>(task);
  if (task->bits == 4) return dot_packed_groups<4>(task);
  const bool few = task->n_levels <= FewLevels::kMost;
  few ? dot_groups_of<Strip<Groups<FewLevels>>>(task) : dot_groups_of<Strip<Groups<ManyLevels>>>(task);
}

}  // namespace avx2
}  // namespace tinyqmoe

#endif  // defined(__x86_64__)
