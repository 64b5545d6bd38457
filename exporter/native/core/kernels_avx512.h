// What the files of the AVX-512 kernels share.
#ifndef TINYQMOE_CORE_KERNELS_AVX512_H_
#define TINYQMOE_CORE_KERNELS_AVX512_H_

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

// Of rows with groups; kernels_avx512_groups.cc.
void dot_groups(GroupsTask* task);

}  // namespace avx512
}  // namespace tinyqmoe
#endif  // TINYQMOE_CORE_KERNELS_AVX512_H_
