// WebAssembly's vectors of 128 bits.
#if defined(__wasm_simd128__)

#include <wasm_simd128.h>

#define TARGET
#define LANE_WIDTH 4

#include "lanes.h"

namespace tinyqmoe {
namespace {

INLINE Part part_of(v128_t v) {
  Part part;
  std::memcpy(&part, &v, sizeof part);
  return part;
}

// Four halves in the lower halves of the lanes: the exponent's bias is put right by an exact product, which normalises
// subnormals too, and an infinity or NaN gets its exponent back.
INLINE Part float_of_halves(v128_t halves) {
  const v128_t size = wasm_i32x4_shl(wasm_v128_and(halves, wasm_i32x4_const_splat(0x7FFF)), 13);
  const v128_t sign = wasm_i32x4_shl(wasm_v128_and(halves, wasm_i32x4_const_splat(0x8000)), 16);
  const v128_t value = wasm_f32x4_mul(size, wasm_f32x4_const_splat(0x1p112f));
  const v128_t infinite = wasm_i32x4_ge(size, wasm_i32x4_const_splat(0x0F800000));
  const v128_t exponent = wasm_v128_and(infinite, wasm_i32x4_const_splat(0x7F800000));
  return part_of(wasm_v128_or(wasm_v128_or(value, exponent), sign));
}
INLINE Pair<Part> load_pair(const uint16_t* halves) {
  return {float_of_halves(wasm_u32x4_load16x4(halves)), float_of_halves(wasm_u32x4_load16x4(halves + 4))};
}
INLINE Lanes load_lanes(const uint16_t* halves) { return {load_pair(halves), load_pair(halves + 8)}; }

INLINE Pair<Part> load_pair(const int8_t* levels) {
  const v128_t words = wasm_i16x8_load8x8(levels);
  return {part_of(wasm_f32x4_convert_i32x4(wasm_i32x4_extend_low_i16x8(words))),
          part_of(wasm_f32x4_convert_i32x4(wasm_i32x4_extend_high_i16x8(words)))};
}
INLINE Lanes load_lanes(const int8_t* levels) { return {load_pair(levels), load_pair(levels + 8)}; }

}  // namespace
}  // namespace tinyqmoe

#include "layer_kernels_lanes.h"

const tinyqmoe::LayerKernels* tinyqmoe::layer_kernels_simd128() { return &kLayerKernels; }

#endif  // defined(__wasm_simd128__)
