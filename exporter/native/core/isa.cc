#include "kernels.h"

#include <initializer_list>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace tinyqmoe {
namespace {

#if defined(__x86_64__)
// Read from the processor itself: __builtin_cpu_supports needs a compiler runtime that a plain link with lld on Android
// does not have.
bool has_avx2() {
  constexpr unsigned kOsXsave = 1u << 27;  // leaf 1, ecx
  constexpr unsigned kAvx = 1u << 28;      // leaf 1, ecx
  constexpr unsigned kAvx2 = 1u << 5;      // leaf 7, ebx
  constexpr unsigned kYmmState = 6;        // xcr0: the system saves xmm and ymm registers
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return false;
  if ((ecx & kOsXsave) == 0 || (ecx & kAvx) == 0) return false;
  unsigned xcr0, xcr0_high;
  __asm__("xgetbv" : "=a"(xcr0), "=d"(xcr0_high) : "c"(0));
  if ((xcr0 & kYmmState) != kYmmState) return false;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (ebx & kAvx2) != 0;
}
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
