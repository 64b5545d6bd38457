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
