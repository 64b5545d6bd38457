// AVX-512 intrinsics in plain C++, for a machine that lacks them: SIMDe's, and what it does not have.
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/avx512/dpbusd.h>

inline simde__m512i load_masked(uint64_t mask, const void* from) {
  alignas(64) uint8_t bytes[64] = {};
  for (int i = 0; i < 64; ++i) {
    if ((mask >> i) & 1) bytes[i] = static_cast<const uint8_t*>(from)[i];
  }
  return simde_mm512_load_si512(bytes);
}

#undef _mm512_maskz_loadu_epi8
#define _mm512_maskz_loadu_epi8 load_masked

inline simde__m512i shifted_left_32(simde__mmask16 mask, simde__m512i v, unsigned n_bits) {
  alignas(64) uint32_t lanes[16];
  simde_mm512_store_si512(lanes, v);
  for (int i = 0; i < 16; ++i) lanes[i] = (mask >> i) & 1 ? lanes[i] << n_bits : 0;
  return simde_mm512_load_si512(lanes);
}

#undef _mm512_maskz_slli_epi32
#define _mm512_maskz_slli_epi32 shifted_left_32

inline simde__m512i shifted_32(simde__mmask16 mask, simde__m512i v, unsigned n_bits) {
  alignas(64) int32_t lanes[16];
  simde_mm512_store_si512(lanes, v);
  for (int i = 0; i < 16; ++i) lanes[i] = (mask >> i) & 1 ? lanes[i] >> n_bits : 0;
  return simde_mm512_load_si512(lanes);
}

#undef _mm512_maskz_srai_epi32
#define _mm512_maskz_srai_epi32 shifted_32

inline simde__m512i shifted_64(simde__mmask8 mask, simde__m512i v, simde__m512i n_bits) {
  alignas(64) uint64_t lanes[8];
  alignas(64) uint64_t n[8];
  simde_mm512_store_si512(lanes, v);
  simde_mm512_store_si512(n, n_bits);
  for (int i = 0; i < 8; ++i) lanes[i] = (mask >> i) & 1 ? lanes[i] >> n[i] : 0;
  return simde_mm512_load_si512(lanes);
}

#undef _mm512_maskz_srlv_epi64
#define _mm512_maskz_srlv_epi64 shifted_64
