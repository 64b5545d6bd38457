// NEON of Armv8.0, which converts halves too.
#if defined(__aarch64__)

#include <arm_neon.h>

#define TARGET
#define LANE_WIDTH 4

#include "lanes.h"

namespace tinyqmoe {
namespace {

INLINE Pair<Part> widen(float16x8_t halves) {
  return {vcvt_f32_f16(vget_low_f16(halves)), vcvt_high_f32_f16(halves)};
}
INLINE Lanes load_lanes(const uint16_t* halves) {
  return {widen(vreinterpretq_f16_u16(vld1q_u16(halves))), widen(vreinterpretq_f16_u16(vld1q_u16(halves + 8)))};
}

INLINE Pair<Part> widen(int16x8_t words) {
  return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(words))), vcvtq_f32_s32(vmovl_high_s16(words))};
}
INLINE Lanes load_lanes(const int8_t* levels) {
  const int8x16_t bytes = vld1q_s8(levels);
  return {widen(vmovl_s8(vget_low_s8(bytes))), widen(vmovl_high_s8(bytes))};
}

}  // namespace
}  // namespace tinyqmoe

#include "layer_kernels_lanes.h"

const tinyqmoe::LayerKernels* tinyqmoe::layer_kernels_neon() { return &kLayerKernels; }

#endif  // defined(__aarch64__)
