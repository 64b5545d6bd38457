// Armv8.0: products of 16 int8 as int16. Their sums in pairs are int32 already: two times -128 * -128 do not fit an int16.
#if defined(__aarch64__)

#include <arm_neon.h>

#define TARGET

namespace {

inline int32x4_t dot16(int32x4_t acc, int8x16_t a, int8x16_t b) {
  return vpadalq_s16(vpadalq_s16(acc, vmull_s8(vget_low_s8(a), vget_low_s8(b))), vmull_high_s8(a, b));
}

}  // namespace

#include "kernels_neon.h"

const tinyqmoe::Kernels* tinyqmoe::neon_kernels() { return &kNeon; }

#endif  // defined(__aarch64__)
