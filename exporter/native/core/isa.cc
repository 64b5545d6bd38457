#include "kernels.h"

#include <initializer_list>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace tinyqmoe {
namespace {

#if defined(__x86_64__)
bool has_avx2() { return __builtin_cpu_supports("avx2"); }
#endif

#if defined(__aarch64__)
bool has_dotprod() {
#if defined(__linux__)
  constexpr unsigned long kAsimdDp = 1ul << 20;  // HWCAP_ASIMDDP, which old headers lack
  return (getauxval(AT_HWCAP) & kAsimdDp) != 0;
#elif defined(__APPLE__)
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &value, &size, nullptr, 0) == 0 && value != 0;
#else
  return false;
#endif
}
#endif

tinyqmoe_isa find_best() {
  for (const tinyqmoe_isa isa : {TINYQMOE_ISA_NEON_DOTPROD, TINYQMOE_ISA_NEON, TINYQMOE_ISA_AVX2}) {
    if (kernels_for(isa) != nullptr) return isa;
  }
  return TINYQMOE_ISA_SCALAR;
}

}  // namespace

const Kernels* kernels_for(tinyqmoe_isa isa) {
  switch (isa) {
    case TINYQMOE_ISA_AUTO: return kernels_for(tinyqmoe_best_isa());
    case TINYQMOE_ISA_SCALAR: return scalar_kernels();
#if defined(__x86_64__)
    case TINYQMOE_ISA_AVX2: return has_avx2() ? avx2_kernels() : nullptr;
#elif defined(__aarch64__)
    case TINYQMOE_ISA_NEON: return neon_kernels();
    case TINYQMOE_ISA_NEON_DOTPROD: return has_dotprod() ? neon_dotprod_kernels() : nullptr;
#endif
    default: return nullptr;
  }
}

}  // namespace tinyqmoe

extern "C" tinyqmoe_isa tinyqmoe_best_isa(void) {
  static const tinyqmoe_isa best = tinyqmoe::find_best();
  return best;
}
