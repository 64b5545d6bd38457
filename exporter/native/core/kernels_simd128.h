// What the files of WebAssembly's kernels share.
#ifndef TINYQMOE_CORE_KERNELS_SIMD128_H_
#define TINYQMOE_CORE_KERNELS_SIMD128_H_

#include <wasm_simd128.h>

#include "kernels.h"

#pragma STDC FP_CONTRACT OFF

namespace tinyqmoe {
namespace simd128 {

// Offset k of each byte.
template <uint32_t kBits>
inline v128_t plane(v128_t packed, uint32_t k) {
  return wasm_v128_and(wasm_u16x8_shr(packed, k * kBits), wasm_u8x16_const_splat((1 << kBits) - 1));
}

// Eight whole activations from their planes.
inline v128_t whole8(const int8_t* high, const int8_t* low) {
  return wasm_i16x8_add(wasm_i16x8_shl(wasm_i16x8_load8x8(high), 8), wasm_i16x8_load8x8(low));
}

// Adds the products of eight offsets, as int16, or levels and as many activations.
inline void add_products(v128_t w, v128_t x, v128_t* lanes) {
  *lanes = wasm_i32x4_add(*lanes, wasm_i32x4_dot_i16x8(w, x));
}

// The four sums of four lanes each.
inline v128_t four_sums(const v128_t lanes[kDotRows]) {
  v128_t pairs[2];  // of two rows: two sums of each, in turn
  for (uint32_t k = 0; k < 2; ++k) {
    const v128_t a = lanes[2 * k], b = lanes[2 * k + 1];
    pairs[k] = wasm_i32x4_add(wasm_i32x4_shuffle(a, b, 0, 4, 1, 5), wasm_i32x4_shuffle(a, b, 2, 6, 3, 7));
  }
  return wasm_i32x4_add(wasm_i64x2_shuffle(pairs[0], pairs[1], 0, 2), wasm_i64x2_shuffle(pairs[0], pairs[1], 1, 3));
}

// y plus the float of a group's sums times their scales.
inline v128_t add_group(v128_t y, v128_t sums, const float* scales) {
  return wasm_f32x4_add(y, wasm_f32x4_mul(wasm_f32x4_convert_i32x4(sums), wasm_v128_load(scales)));
}

// Of the table of kernels.h, for one token and rows with groups; kernels_simd128_groups.cc.
void dot_groups(GroupsTask* task);

}  // namespace simd128
}  // namespace tinyqmoe
#endif  // TINYQMOE_CORE_KERNELS_SIMD128_H_
