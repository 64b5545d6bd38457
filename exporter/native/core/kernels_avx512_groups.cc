// AVX-512 with VNNI: packed rows with a scale for each group of columns.
#if defined(__x86_64__)

#include "kernels_avx2_groups.h"
#include "kernels_avx512.h"

namespace tinyqmoe {
namespace avx512 {
namespace {

// The sums of four registers, a lane of four each. As shuffled_sums of AVX2.
AVX512_INLINE __m512i shuffled_sums(const __m512i lanes[kDotRows]) {
  const __m512i first = _mm512_add_epi32(_mm512_maskz_unpacklo_epi32(0xFFFF, lanes[0], lanes[1]),
                                         _mm512_maskz_unpackhi_epi32(0xFFFF, lanes[0], lanes[1]));
  const __m512i last = _mm512_add_epi32(_mm512_maskz_unpacklo_epi32(0xFFFF, lanes[2], lanes[3]),
                                        _mm512_maskz_unpackhi_epi32(0xFFFF, lanes[2], lanes[3]));
  return _mm512_add_epi32(_mm512_maskz_unpacklo_epi64(0xFF, first, last),
                          _mm512_maskz_unpackhi_epi64(0xFF, first, last));
}

// A block's products with both planes of 32 * kPlanes columns.
template <uint32_t kBits>
AVX512_INLINE __m512i add_block(const uint8_t* packed, const int8_t* x, __m512i sum) {
  const __m512i v = twice(avx2::load32(packed));
  const __m512i mask = _mm512_set1_epi8((1 << kBits) - 1);
  for (uint32_t k = 0; k < 8 / kBits; ++k, x += 64) {
    const __m512i offsets = _mm512_and_si512(_mm512_srli_epi16(v, k * kBits), mask);
    sum = _mm512_dpbusd_epi32(sum, offsets, _mm512_loadu_si512(x));
  }
  return sum;
}

// Rows whose groups are half a block or whole ones. A place in a row is counted in bytes.
template <uint32_t kBits>
struct PackedGroups {
  static constexpr uint32_t kPlanes = 8 / kBits;

  // Sums of `n_bytes`, whole blocks: of the lower and the upper half of each block's bytes, four rows each.
  AVX512_INLINE static __m256i halves(const GroupsTask& task, uint64_t begin, uint64_t n_bytes) {
    __m512i lanes[kDotRows];
    for (uint32_t r = 0; r < kDotRows; ++r) {
      __m512i sum = _mm512_setzero_si512();
      const int8_t* x = task.packed_x + 2 * kPlanes * begin;
      for (uint64_t i = begin; i < begin + n_bytes; i += kPackedBlock, x += 64 * kPlanes) {
        avx2::prefetch(task.rows[r] + i);
        sum = add_block<kBits>(task.rows[r] + i, x, sum);
      }
      lanes[r] = sum;
    }
    const __m512i planes = shuffled_sums(lanes);
    return _mm256_add_epi32(_mm256_slli_epi32(low_half(planes), 8), high_half(planes));
  }

  AVX512 static void put(const GroupsTask& task, uint32_t first, uint32_t n, int32_t* sums) {
    const uint64_t size = task.group_size / kPlanes;  // in bytes
    if (task.has_half_blocks()) {
      for (uint32_t group = 0; group < n; group += 2) {
        const __m256i two = halves(task, (first + group) * size, kPackedBlock);
        group + 1 < n ? avx2::store32(sums, two) : avx2::store16(sums, _mm256_castsi256_si128(two));
        sums += 2 * kDotRows;
      }
      return;
    }
    for (uint32_t group = 0; group < n; ++group, sums += kDotRows) {
      const __m256i both = halves(task, (first + group) * size, size);
      avx2::store16(sums, _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1)));
    }
  }
};

}  // namespace

void dot_groups(GroupsTask* task) {
  if (task->bits == 8) return avx2::dot_groups(task);
  task->bits == 2 ? avx2::dot_groups_of<PackedGroups<2>>(task) : avx2::dot_groups_of<PackedGroups<4>>(task);
}

}  // namespace avx512
}  // namespace tinyqmoe

#endif  // defined(__x86_64__)
