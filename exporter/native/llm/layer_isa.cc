// Which instruction sets this machine has.
#include <initializer_list>

#include "layer_kernels.h"

namespace tinyqmoe {
namespace {

tinyqmoe_isa find_best() {
  for (const tinyqmoe_isa isa : {TINYQMOE_LLM_ISA_AVX512, TINYQMOE_ISA_AVX2, TINYQMOE_ISA_NEON}) {
    if (layer_kernels_for(isa) != nullptr) return isa;
  }
  return TINYQMOE_ISA_SCALAR;
}

}  // namespace

const LayerKernels* layer_kernels_for(tinyqmoe_isa isa) {
  switch (static_cast<int>(isa)) {
    case TINYQMOE_ISA_AUTO: return layer_kernels_for(tinyqmoe_llm_best_isa());
    case TINYQMOE_ISA_SCALAR: return layer_kernels_scalar();
#if defined(__x86_64__)
    case TINYQMOE_ISA_AVX2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c") ? layer_kernels_avx2() : nullptr;
    case TINYQMOE_LLM_ISA_AVX512: return __builtin_cpu_supports("avx512f") ? layer_kernels_avx512() : nullptr;
#elif defined(__aarch64__)
    case TINYQMOE_ISA_NEON:
    case TINYQMOE_ISA_NEON_DOTPROD: return layer_kernels_neon();
#endif
    default: return nullptr;
  }
}

}  // namespace tinyqmoe

extern "C" tinyqmoe_isa tinyqmoe_llm_best_isa(void) {
  static const tinyqmoe_isa best = tinyqmoe::find_best();
  return best;
}
