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

// Of rows with groups; kernels_avx512_groups.cc.
void dot_groups(GroupsTask* task);

}  // namespace avx512
}  // namespace tinyqmoe
#endif  // TINYQMOE_CORE_KERNELS_AVX512_H_
