// AVX2: rows with a scale for each group of columns.
#if defined(__x86_64__)

#include "kernels_avx2.h"

namespace tinyqmoe {
namespace avx2 {
namespace {

// Sums of offset * x of a group, by lanes, from those of int16 pairs of either plane.
AVX2_INLINE __m256i of_planes(__m256i high_pairs, __m256i low_pairs) {
  return _mm256_add_epi32(_mm256_slli_epi32(widen(high_pairs), 8), widen(low_pairs));
}

// Offsets of few levels: int16s can add up all pairs of a group.
struct FewLevels {
  static constexpr uint32_t kMost = 16;
  static_assert(int16_steps(kMost) * 32 >= kMostGroup);

  AVX2_INLINE static void add(const GroupsTask& task, uint32_t begin, uint32_t end, __m256i lanes[kDotRows]) {
    __m256i high_pairs[kDotRows], low_pairs[kDotRows];
    for (uint32_t r = 0; r < kDotRows; ++r) high_pairs[r] = low_pairs[r] = _mm256_setzero_si256();
    for (uint32_t i = begin; i < end; i += 32) {
      const __m256i high = load32(task.x.high + i), low = load32(task.x.low + i);
      for (uint32_t r = 0; r < kDotRows; ++r) {
        const __m256i offsets = load32(task.rows[r] + i);
        high_pairs[r] = _mm256_add_epi16(high_pairs[r], _mm256_maddubs_epi16(offsets, high));
        low_pairs[r] = _mm256_add_epi16(low_pairs[r], _mm256_maddubs_epi16(offsets, low));
      }
    }
    for (uint32_t r = 0; r < kDotRows; ++r) lanes[r] = of_planes(high_pairs[r], low_pairs[r]);
  }
};

struct ManyLevels {
  AVX2_INLINE static void add(const GroupsTask& task, uint32_t begin, uint32_t end, __m256i lanes[kDotRows]) {
    for (uint32_t r = 0; r < kDotRows; ++r) lanes[r] = _mm256_setzero_si256();
    for (uint32_t i = begin; i < end; i += 16) {
      const __m256i x = load32(task.x.whole + i);
      for (uint32_t r = 0; r < kDotRows; ++r) {
        const __m256i offsets = _mm256_cvtepu8_epi16(load16(task.rows[r] + i));
        lanes[r] = _mm256_add_epi32(lanes[r], _mm256_madd_epi16(offsets, x));
      }
    }
  }
};

template <uint32_t kBits>
struct Packed {
  static constexpr uint32_t kPlanes = 8 / kBits;
  static_assert(int16_steps(1u << kBits) * 32 >= kMostGroup);

  AVX2_INLINE static void add(const GroupsTask& task, uint32_t begin, uint32_t end, __m256i lanes[kDotRows]) {
    for (uint32_t r = 0; r < kDotRows; ++r) {
      const uint8_t* packed = task.rows[r] + begin / kPlanes;
      const int8_t* x = task.packed_x + 2 * uint64_t{begin};
      const int8_t* const last = task.packed_x + 2 * uint64_t{end};
      __m256i high_pairs = _mm256_setzero_si256(), low_pairs = _mm256_setzero_si256();
      do {
        const __m256i v = load32(packed);
        for (uint32_t k = 0; k < kPlanes; ++k, x += 64) {
          const __m256i offsets = plane<kBits>(v, static_cast<int>(k));
          high_pairs = _mm256_add_epi16(high_pairs, _mm256_maddubs_epi16(offsets, load32(x)));
          low_pairs = _mm256_add_epi16(low_pairs, _mm256_maddubs_epi16(offsets, load32(x + 32)));
        }
        packed += 32;
      } while (x < last);
      lanes[r] = of_planes(high_pairs, low_pairs);
    }
  }
};

// What the groups so far gave: the float of each one's sum of level * x, times its scale, one after the other.
struct Outputs {
  const GroupsTask& task;
  uint32_t group = 0;
  __m128 y = _mm_setzero_ps();

  AVX2_INLINE explicit Outputs(const GroupsTask& t) : task(t) {}

  AVX2_INLINE void add(__m128i sums) {
    const __m128i levels = _mm_add_epi32(sums, _mm_set1_epi32(task.level_min * task.x_sums[group]));
    y = _mm_add_ps(y, _mm_mul_ps(_mm_cvtepi32_ps(levels), _mm_loadu_ps(task.scales + group * kDotRows)));
    ++group;
  }
};

template <typename Rows>
AVX2 void dot_groups_of(GroupsTask* task) {
  Outputs outputs(*task);
  for (uint32_t begin = 0; begin < task->cols; begin += task->group_size) {
    __m256i lanes[kDotRows];
    Rows::add(*task, begin, begin + task->group_size, lanes);
    outputs.add(four_sums32(lanes));
  }
  _mm_storeu_ps(task->y, outputs.y);
}

// Groups of half a block: lanes of its lower and upper bytes are two groups.
template <uint32_t kBits>
AVX2 void dot_half_blocks(GroupsTask* task) {
  Outputs outputs(*task);
  for (uint32_t begin = 0; begin < task->cols; begin += 2 * task->group_size) {
    __m256i lanes[kDotRows];
    Packed<kBits>::add(*task, begin, begin + 2 * task->group_size, lanes);
    const __m256i two = sums_of_halves(lanes);
    outputs.add(_mm256_castsi256_si128(two));
    if (begin + task->group_size < task->cols) outputs.add(_mm256_extracti128_si256(two, 1));
  }
  _mm_storeu_ps(task->y, outputs.y);
}

template <uint32_t kBits>
void dot_packed_groups(GroupsTask* task) {
  task->has_half_blocks() ? dot_half_blocks<kBits>(task) : dot_groups_of<Packed<kBits>>(task);
}

}  // namespace

void dot_groups(GroupsTask* task) {
  if (task->bits == 2) return dot_packed_groups<2>(task);
  if (task->bits == 4) return dot_packed_groups<4>(task);
  task->n_levels <= FewLevels::kMost ? dot_groups_of<FewLevels>(task) : dot_groups_of<ManyLevels>(task);
}

}  // namespace avx2
}  // namespace tinyqmoe

#endif  // defined(__x86_64__)
