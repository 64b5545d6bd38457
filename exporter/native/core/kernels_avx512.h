// What the files of the AVX-512 kernels share.
#ifndef TINYQMOE_CORE_KERNELS_AVX512_H_
#define TINYQMOE_CORE_KERNELS_AVX512_H_

#include <algorithm>

#include "kernels_avx2.h"

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))
#define AVX512_INLINE __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni"), always_inline)) inline

namespace tinyqmoe {
namespace avx512 {

// Masked forms with all of the mask set: with the plain ones gcc 12 warns of its own header.
AVX512_INLINE __m256i low_half(__m512i v) { return _mm512_maskz_extracti64x4_epi64(0xF, v, 0); }
AVX512_INLINE __m256i high_half(__m512i v) { return _mm512_maskz_extracti64x4_epi64(0xF, v, 1); }
AVX512_INLINE __m512i twice(__m256i v) { return _mm512_maskz_broadcast_i64x4(0xFF, v); }

// A plane's elements of pack_x for two blocks of packed offsets, kPlanes of each byte, or for one, and zeros.
template <uint32_t kPlanes>
AVX512_INLINE __m512i plane_of_blocks(const int8_t* x, bool two) {
  const __m256i first = avx2::load32(x);
  if (!two) return _mm512_maskz_inserti64x4(0x0F, _mm512_setzero_si512(), first, 0);
  return _mm512_maskz_inserti64x4(0xFF, _mm512_castsi256_si512(first), avx2::load32(x + 64 * kPlanes), 1);
}

// Asks for what follows four rows that are read side by side, in the order of memory and into the second cache. By itself it
// delivers such rows at half of its speed, as they come to four places of a page in turn.
class Ahead {
 public:
  // The four rows after those from `row` on are on their way, and some more.
  AVX512_INLINE Ahead(const uint8_t* row, uint64_t row_bytes)
      : at_(reinterpret_cast<const char*>(row + kDotRows * row_bytes) + 4096) {}

  // Goes with each 64 bytes that are read.
  AVX512_INLINE void next() {
    _mm_prefetch(at_, _MM_HINT_T1);
    at_ += 64;
  }

 private:
  const char* at_;
};

// Sums of either plane by lanes, kMany of each.
template <uint32_t kMany>
struct PlaneSums {
  __m512i high[kMany], low[kMany];

  AVX512_INLINE PlaneSums() {
    std::fill_n(high, kMany, _mm512_setzero_si512());
    std::fill_n(low, kMany, _mm512_setzero_si512());
  }

  AVX512_INLINE void add(uint32_t k, __m512i offsets, __m512i x_high, __m512i x_low) {
    high[k] = _mm512_dpbusd_epi32(high[k], offsets, x_high);
    low[k] = _mm512_dpbusd_epi32(low[k], offsets, x_low);
  }
};

// Of four rows.
struct FourRowSums : PlaneSums<kDotRows> {
  AVX512_INLINE FourRowSums() {}  // an implicit one would be for another instruction set

  AVX512_INLINE static __m256i of_plane(const __m512i lanes[kDotRows]) {
    __m256i halves[kDotRows];
    for (uint32_t r = 0; r < kDotRows; ++r) halves[r] = _mm256_add_epi32(low_half(lanes[r]), high_half(lanes[r]));
    return avx2::four_sums(halves);
  }

  // Of offset * x, int64.
  AVX512_INLINE __m256i all() const { return _mm256_add_epi64(_mm256_slli_epi64(of_plane(high), 8), of_plane(low)); }
};

// Four rows of a task side by side, which share loads of activations, and their sums.
struct FourRows {
  const uint8_t* rows[kDotRows];
  Ahead ahead;
  FourRowSums sums;

  // Rows from `first` on. Those past the last repeat it.
  AVX512_INLINE FourRows(const PackedTask& task, uint32_t first) : ahead(task.row(first), task.row_bytes) {
    for (uint32_t r = 0; r < kDotRows; ++r) rows[r] = task.row(std::min(first + r, task.n_rows - 1));
  }

  AVX512_INLINE void put(const PackedTask& task, uint32_t first) const {
    if (first + kDotRows <= task.n_rows) return avx2::store32(task.sums + first, sums.all());
    int64_t found[kDotRows];
    avx2::store32(found, sums.all());
    std::copy_n(found, task.n_rows - first, task.sums + first);
  }
};

// Of rows with groups; kernels_avx512_groups.cc.
void dot_groups(GroupsTask* task);

// Of rows of base-3 codes, with VBMI besides; kernels_avx512_base3.cc.
void dot_base3(const PackedTask& task);

}  // namespace avx512
}  // namespace tinyqmoe
#endif  // TINYQMOE_CORE_KERNELS_AVX512_H_
