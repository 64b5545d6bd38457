// Armv8.2 sdot. The header of clang before 16 hides vdotq_s32 unless the whole file is built for it; there this
// file has no kernels and the Armv8.0 ones serve.
#if defined(__aarch64__)

#include <arm_neon.h>

#include "kernels.h"

#if defined(__clang__) && __clang_major__ < 16 && !defined(__ARM_FEATURE_DOTPROD)

const tinyqmoe::Kernels* tinyqmoe::neon_dotprod_kernels() { return nullptr; }

#else

#if defined(__clang__)
#define TARGET __attribute__((target("dotprod")))
#else
#define TARGET __attribute__((target("arch=armv8.2-a+dotprod")))
#endif

namespace {

TARGET inline int32x4_t dot16(int32x4_t acc, int8x16_t a, int8x16_t b) { return vdotq_s32(acc, a, b); }

}  // namespace

#include "kernels_neon.h"

const tinyqmoe::Kernels* tinyqmoe::neon_dotprod_kernels() { return &kNeon; }

#endif
#endif  // defined(__aarch64__)
