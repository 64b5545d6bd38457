// AVX2 with F16C. Every function carries the target attribute, so that the rest of the library runs on any x86-64.
#if defined(__x86_64__)

#include <immintrin.h>

#define TARGET __attribute__((target("avx2,f16c")))
#define LANE_WIDTH 8

#include "lanes.h"

namespace tinyqmoe {
namespace {

INLINE Part load_part(const uint16_t* halves) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves)));
}
INLINE Lanes load_lanes(const uint16_t* halves) { return {load_part(halves), load_part(halves + 8)}; }

INLINE Part load_part(const int8_t* levels) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(levels));
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
}
INLINE Lanes load_lanes(const int8_t* levels) { return {load_part(levels), load_part(levels + 8)}; }

}  // namespace
}  // namespace tinyqmoe

#include "layer_kernels_lanes.h"

const tinyqmoe::LayerKernels* tinyqmoe::layer_kernels_avx2() { return &kLayerKernels; }

#endif  // defined(__x86_64__)
