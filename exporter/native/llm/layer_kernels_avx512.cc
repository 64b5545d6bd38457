// AVX-512 Foundation: sixteen lanes are one register.
#if defined(__x86_64__)

#include <immintrin.h>

#define TARGET __attribute__((target("avx512f")))
#define LANE_WIDTH 16

#include "lanes.h"

namespace tinyqmoe {
namespace {

// The forms with a mask, which is all ones: GCC 12 warns that the plain ones read an uninitialised register (bug
// 105593).
constexpr __mmask16 kAll = 0xFFFF;

INLINE Lanes load_lanes(const uint16_t* halves) {
  return _mm512_maskz_cvtph_ps(kAll, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)));
}

INLINE Lanes load_lanes(const int8_t* levels) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(levels));
  return _mm512_maskz_cvtepi32_ps(kAll, _mm512_maskz_cvtepi8_epi32(kAll, bytes));
}

}  // namespace
}  // namespace tinyqmoe

#include "layer_kernels_lanes.h"

const tinyqmoe::LayerKernels* tinyqmoe::layer_kernels_avx512() { return &kLayerKernels; }

#endif  // defined(__x86_64__)
