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

// Rows whose groups are whole blocks. A place in a row is counted in bytes.
template <uint32_t kBits>
struct WholeBlocks {
  static constexpr uint32_t kPlanes = 8 / kBits;

  AVX512 static void put(const GroupsTask& task, uint32_t first, uint32_t n, int32_t* sums) {
    const uint64_t size = task.group_size / kPlanes;  // in bytes
    for (uint32_t group = 0; group < n; ++group, sums += kDotRows) {
      const uint64_t begin = (first + group) * size;
      __m512i lanes[kDotRows];
      for (uint32_t r = 0; r < kDotRows; ++r) {
        lanes[r] = _mm512_setzero_si512();
        for (uint64_t i = begin; i < begin + size; i += kPackedBlock) {
          avx2::prefetch(task.rows[r] + i);
          lanes[r] = add_block<kBits>(task.rows[r] + i, task.packed_x + 2 * kPlanes * i, lanes[r]);
        }
      }
      const __m512i planes = shuffled_sums(lanes);
      const __m256i both = _mm256_add_epi32(_mm256_slli_epi32(low_half(planes), 8), high_half(planes));
      avx2::store16(sums, _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1)));
    }
  }
};

// Rows whose groups are half a block.
template <uint32_t kBits>
struct HalfBlocks {
  static constexpr uint32_t kPlanes = 8 / kBits;
  static constexpr uint32_t kBytes = kPackedBlock / 2;  // of a group

  // Sums of n groups from this one on, up to four: a group is a quarter of a register, in which four rows have a lane each.
  // What comes after them is not used.
  AVX512_INLINE static __m512i sums(const GroupsTask& task, uint32_t group, uint32_t n) {
    const __mmask64 bytes = ~__mmask64{0} >> (64 - kBytes * n);
    const __m512i mask = _mm512_set1_epi8((1 << kBits) - 1);
    __m512i high[kPlanes], low[kPlanes];
    for (uint32_t k = 0; k < kPlanes; ++k) {
      const int8_t* const x = task.packed_x + 2 * kPlanes * kBytes * uint64_t{group} + 64 * k;
      high[k] = plane_of_blocks<kPlanes>(x, n > 2);
      low[k] = plane_of_blocks<kPlanes>(x + 32, n > 2);
    }
    __m512i lanes[kDotRows];
    for (uint32_t r = 0; r < kDotRows; ++r) {
      const uint8_t* const row = task.rows[r] + kBytes * uint64_t{group};
      avx2::prefetch(row);
      const __m512i packed = _mm512_maskz_loadu_epi8(bytes, row);
      __m512i offsets[kPlanes], sum = _mm512_setzero_si512();
      for (uint32_t k = 0; k < kPlanes; ++k) {
        offsets[k] = _mm512_and_si512(_mm512_srli_epi16(packed, k * kBits), mask);
        sum = _mm512_dpbusd_epi32(sum, offsets[k], high[k]);
      }
      sum = _mm512_maskz_slli_epi32(0xFFFF, sum, 8);
      for (uint32_t k = 0; k < kPlanes; ++k) sum = _mm512_dpbusd_epi32(sum, offsets[k], low[k]);
      lanes[r] = sum;
    }
    return shuffled_sums(lanes);
  }
};

template <uint32_t kBits, typename RowScales>
AVX512 void dot_half_blocks(GroupsTask* task) {
  avx2::Outputs<RowScales> outputs(*task);
  const uint32_t n = task->n_groups();
  uint32_t group = 0;
  for (; group + 4 <= n; group += 4) {
    const __m512i sums = HalfBlocks<kBits>::sums(*task, group, 4);
    outputs.add_two(low_half(sums));
    outputs.add_two(high_half(sums));
  }
  if (group < n) {
    const __m512i sums = HalfBlocks<kBits>::sums(*task, group, n - group);
    if (n - group >= 2) outputs.add_two(low_half(sums));
    const __m256i last = n - group == 3 ? high_half(sums) : low_half(sums);
    if (n % 2 != 0) outputs.add_last(_mm256_castsi256_si128(last));
  }
  _mm_storeu_ps(task->y, outputs.y);
}

template <uint32_t kBits>
void dot_packed_groups(GroupsTask* task) {
  if (!task->has_half_blocks()) return avx2::dot_groups_of<WholeBlocks<kBits>>(task);
  const bool coded = task->stored_scales.type == TINYQMOE_SCALES_UE6M10;
  coded ? dot_half_blocks<kBits, avx2::CodedScales>(task) : dot_half_blocks<kBits, avx2::FloatScales>(task);
}

}  // namespace

void dot_groups(GroupsTask* task) {
  if (task->bits == 8) return avx2::dot_groups(task);
  task->bits == 2 ? dot_packed_groups<2>(task) : dot_packed_groups<4>(task);
}

}  // namespace avx512
}  // namespace tinyqmoe

#endif  // defined(__x86_64__)
