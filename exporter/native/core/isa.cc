#include "crc32.h"
#include "kernels.h"
#include "sha256.h"

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
struct X86 {
  bool carryless = false;  // PCLMULQDQ and SSE4.1
  bool sha256 = false;     // SHA, SSSE3 and SSE4.1
  bool avx2 = false;
  bool avx512 = false;  // F, BW, VL and VNNI
  bool vbmi = false;    // AVX512_VBMI
};

X86 x86_features() {
  constexpr unsigned kCarryless = (1u << 1) | (1u << 19);              // leaf 1, ecx
  constexpr unsigned kSse = (1u << 9) | (1u << 19);                    // likewise: SSSE3, SSE4.1
  constexpr unsigned kOsXsave = 1u << 27;                              // likewise
  constexpr unsigned kAvx2 = (1u << 3) | (1u << 5) | (1u << 8);        // leaf 7, ebx: with BMI and BMI2
  constexpr unsigned kAvx512 = (1u << 16) | (1u << 30) | (1u << 31);  // leaf 7, ebx: F, BW, VL
  constexpr unsigned kSha = 1u << 29;                                  // likewise
  constexpr unsigned kVnni = 1u << 11;                                 // leaf 7, ecx
  constexpr unsigned kVbmi = 1u << 1;                                  // likewise
  constexpr unsigned kYmm = 0x06;                                      // xcr0: what the system saves
  constexpr unsigned kZmm = 0xE6;
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return {};
  X86 has;
  has.carryless = (ecx & kCarryless) == kCarryless;
  const bool sse = (ecx & kSse) == kSse;
  if ((ecx & kOsXsave) == 0) return has;
  unsigned xcr0, xcr0_high;
  __asm__("xgetbv" : "=a"(xcr0), "=d"(xcr0_high) : "c"(0));
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return has;
  has.sha256 = sse && (ebx & kSha) != 0;
  has.avx2 = (xcr0 & kYmm) == kYmm && (ebx & kAvx2) == kAvx2;
  has.avx512 = has.avx2 && (xcr0 & kZmm) == kZmm && (ebx & kAvx512) == kAvx512 && (ecx & kVnni) != 0;
  has.vbmi = (ecx & kVbmi) != 0;
  return has;
}
#endif

#if defined(__aarch64__)
#if defined(__linux__)
// Old headers lack the names of the bits.
struct Feature {
  unsigned long word;
  unsigned long bit;
};
constexpr Feature kDotprod{AT_HWCAP, 1ul << 20}, kI8mm{AT_HWCAP2, 1ul << 13}, kCrc32{AT_HWCAP, 1ul << 7},
    kSha2{AT_HWCAP, 1ul << 6};
bool has(Feature feature) { return (getauxval(feature.word) & feature.bit) != 0; }
#elif defined(__APPLE__)
constexpr const char *kDotprod = "hw.optional.arm.FEAT_DotProd", *kI8mm = "hw.optional.arm.FEAT_I8MM",
                     *kCrc32 = "hw.optional.armv8_crc32", *kSha2 = "hw.optional.arm.FEAT_SHA256";
bool has(const char* name) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}
#else
constexpr bool kDotprod = false, kI8mm = false, kCrc32 = false, kSha2 = false;
bool has(bool known) { return known; }
#endif
#endif

#if defined(__x86_64__)
const X86& x86() {
  static const X86 has = x86_features();
  return has;
}
#endif

tinyqmoe_isa find_best() {
  for (const tinyqmoe_isa isa : {TINYQMOE_ISA_NEON_I8MM, TINYQMOE_ISA_NEON_DOTPROD, TINYQMOE_ISA_NEON,
                                 TINYQMOE_ISA_AVX512, TINYQMOE_ISA_AVX2, TINYQMOE_ISA_SIMD128}) {
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
    case TINYQMOE_ISA_AVX2: return x86().avx2 ? avx2_kernels() : nullptr;
    case TINYQMOE_ISA_AVX512: return x86().avx512 ? avx512_kernels(x86().vbmi) : nullptr;
#elif defined(__aarch64__)
    case TINYQMOE_ISA_NEON: return neon_kernels();
    case TINYQMOE_ISA_NEON_DOTPROD: return has(kDotprod) ? neon_dotprod_kernels() : nullptr;
    case TINYQMOE_ISA_NEON_I8MM: return has(kDotprod) && has(kI8mm) ? neon_i8mm_kernels() : nullptr;
#elif defined(__wasm_simd128__)
    case TINYQMOE_ISA_SIMD128: return simd128_kernels();
#endif
    default: return nullptr;
  }
}

#if defined(__x86_64__)
bool has_carryless_product() { return x86().carryless; }
bool has_sha256() { return x86().sha256; }
#elif defined(__aarch64__)
bool has_crc32() { return has(kCrc32); }
bool has_sha256() { return has(kSha2); }
#endif

}  // namespace tinyqmoe

extern "C" tinyqmoe_isa tinyqmoe_best_isa(void) {
  static const tinyqmoe_isa best = tinyqmoe::find_best();
  return best;
}
