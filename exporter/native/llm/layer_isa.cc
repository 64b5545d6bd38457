// Which instruction sets this machine has: those of the products (core/isa.cc).
#include <initializer_list>

#include "kernels.h"
#include "layer_kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace tinyqmoe {
namespace {

#if defined(__x86_64__)
// Halves of float16 caches. Not __builtin_cpu_supports, see core/isa.cc.
bool has_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & (1u << 29)) != 0;
}
#endif

tinyqmoe_isa find_best() {
  for (const tinyqmoe_isa isa : {TINYQMOE_ISA_AVX512, TINYQMOE_ISA_AVX2, TINYQMOE_ISA_NEON, TINYQMOE_ISA_SIMD128}) {
    if (layer_kernels_for(isa) != nullptr) return isa;
  }
  return TINYQMOE_ISA_SCALAR;
}

}  // namespace

const LayerKernels* layer_kernels_for(tinyqmoe_isa isa) {
  if (kernels_for(isa) == nullptr) return nullptr;
  switch (isa) {
    case TINYQMOE_ISA_AUTO: return layer_kernels_for(tinyqmoe_llm_best_isa());
    case TINYQMOE_ISA_SCALAR: return layer_kernels_scalar();
#if defined(__x86_64__)
    case TINYQMOE_ISA_AVX2: return has_f16c() ? layer_kernels_avx2() : nullptr;
    case TINYQMOE_ISA_AVX512: return layer_kernels_avx512();
#elif defined(__aarch64__)
    case TINYQMOE_ISA_NEON:
    case TINYQMOE_ISA_NEON_DOTPROD:
    case TINYQMOE_ISA_NEON_I8MM: return layer_kernels_neon();
#elif defined(__wasm_simd128__)
    case TINYQMOE_ISA_SIMD128: return layer_kernels_simd128();
#endif
    default: return nullptr;
  }
}

}  // namespace tinyqmoe

extern "C" tinyqmoe_isa tinyqmoe_llm_best_isa(void) {
  static const tinyqmoe_isa best = tinyqmoe::find_best();
  return best;
}
