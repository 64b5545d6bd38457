// Symmetric int8 activations, one scale a token.
#include <cstring>

#include "bytes.h"
#include "kernels.h"

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

namespace tinyqmoe {
namespace {

constexpr float kSmallest = 0x1p-100f;

tinyqmoe_status quantize_token(const Kernels& kernels, const float* x, uint32_t cols, int8_t* out, float* scale) {
  const uint32_t bits = kernels.abs_max_bits(x, cols);
  if (bits >= 0x7F800000u) return TINYQMOE_NON_FINITE;
  const float largest = load<float>(&bits);
  const bool zero = largest < kSmallest;
  *scale = zero ? 0.0f : largest / 127.0f;
  kernels.quantize(x, cols, zero ? 0.0f : 127.0f / largest, out);
  std::memset(out + cols, 0, tinyqmoe_padded_cols(cols) - cols);
  return TINYQMOE_OK;
}

}  // namespace
}  // namespace tinyqmoe

extern "C" {

// A direct product may run kOverrun elements past cols, other kernels to the next multiple of 32.
uint32_t tinyqmoe_padded_cols(uint32_t cols) {
  return static_cast<uint32_t>(tinyqmoe::round_up(uint64_t{cols} + tinyqmoe::kOverrun, 64));
}

tinyqmoe_status tinyqmoe_quantize_activations(const float* x, uint32_t n_tokens, uint32_t cols, tinyqmoe_isa isa,
                                              int8_t* quantized, float* x_scales) {
  if (cols == 0 || cols > 65535) return TINYQMOE_BAD_ARGUMENT;
  if (n_tokens == 0) return TINYQMOE_OK;
  if (x == nullptr || quantized == nullptr || x_scales == nullptr) return TINYQMOE_BAD_ARGUMENT;
  const tinyqmoe::Kernels* kernels = tinyqmoe::kernels_for(isa);
  if (kernels == nullptr) return TINYQMOE_NO_ISA;
  const uint64_t padded = tinyqmoe_padded_cols(cols);
  for (uint64_t t = 0; t < n_tokens; ++t) {
    const tinyqmoe_status status =
        tinyqmoe::quantize_token(*kernels, x + t * cols, cols, quantized + t * padded, x_scales + t);
    if (status != TINYQMOE_OK) return status;
  }
  return TINYQMOE_OK;
}

}  // extern "C"
