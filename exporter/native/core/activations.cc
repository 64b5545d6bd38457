// Symmetric int16 activations, one scale a token.
#include "activations.h"

#include <cstring>

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

namespace tinyqmoe {
namespace {

constexpr float kSmallest = 0x1p-100f;
constexpr float kMost = static_cast<float>(kMostActivation);

tinyqmoe_status quantize_token(const Kernels& kernels, const float* x, uint32_t cols, int8_t* out, float* scale) {
  const uint32_t bits = kernels.abs_max_bits(x, cols);
  if (bits >= 0x7F800000u) return TINYQMOE_NON_FINITE;
  const float largest = load<float>(&bits);
  const bool zero = largest < kSmallest;
  *scale = zero ? 0.0f : largest / kMost;
  const uint64_t padded = padded_cols(cols);
  int16_t* const whole = reinterpret_cast<int16_t*>(out);
  int8_t* const high = out + 2 * padded;
  int8_t* const low = high + plane_stride(cols);
  kernels.quantize(x, cols, zero ? 0.0f : kMost / largest, whole, high, low);
  std::memset(whole + cols, 0, (padded - cols) * sizeof *whole);
  std::memset(high + cols, 0, padded - cols);
  std::memset(low + cols, 0, padded - cols);
  return TINYQMOE_OK;
}

}  // namespace
}  // namespace tinyqmoe

extern "C" {

uint64_t tinyqmoe_quantized_bytes(uint32_t cols) { return tinyqmoe::token_bytes(cols); }

tinyqmoe_status tinyqmoe_quantize_x16(const float* x, uint32_t n_tokens, uint32_t cols, tinyqmoe_isa isa,
                                      void* quantized, float* x_scales) {
  if (cols == 0 || cols > 65535) return TINYQMOE_BAD_ARGUMENT;
  if (n_tokens == 0) return TINYQMOE_OK;
  if (x == nullptr || quantized == nullptr || x_scales == nullptr) return TINYQMOE_BAD_ARGUMENT;
  if (reinterpret_cast<uintptr_t>(quantized) % 64 != 0) return TINYQMOE_BAD_ARGUMENT;
  const tinyqmoe::Kernels* kernels = tinyqmoe::kernels_for(isa);
  if (kernels == nullptr) return TINYQMOE_NO_ISA;
  int8_t* const bytes = static_cast<int8_t*>(quantized);
  for (uint64_t t = 0; t < n_tokens; ++t) {
    const tinyqmoe_status status = tinyqmoe::quantize_token(
        *kernels, x + t * cols, cols, bytes + t * tinyqmoe::token_bytes(cols), x_scales + t);
    if (status != TINYQMOE_OK) return status;
  }
  return TINYQMOE_OK;
}

}  // extern "C"
