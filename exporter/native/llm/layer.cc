// The functions of llm.h that have no cache: norms, rope, SwiGLU and the sums.
#include "layer_kernels.h"

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

namespace tinyqmoe {
namespace {

struct Angle {
  double sine;
  double cosine;
};

// Of an angle in [0, 2^20).
Angle turn(double angle) {
  // Cody and Waite: pi/2 in parts of 33 bits, whose products with n < 2^20 are exact.
  const double shift = 0x1.8p+52;
  const double n = (angle * 0x1.45f306dc9c883p-1 + shift) - shift;
  const double r =
      ((angle - n * 0x1.921fb544p+0) - n * 0x1.0b4611a6p-34) - n * 0x1.3198a2e037073p-69;
  // fdlibm's __kernel_sin and __kernel_cos, for |r| <= pi/4 and without the part of r beyond a double.
  const double z = r * r;
  double s = 1.58969099521155010221e-10;
  s = s * z + -2.50507602534068634195e-08;
  s = s * z + 2.75573137070700676789e-06;
  s = s * z + -1.98412698298579493134e-04;
  s = s * z + 8.33333333332248946124e-03;
  s = s * z + -1.66666666666666324348e-01;
  const double sine = r + (z * r) * s;
  double c = -1.13596475577881948265e-11;
  c = c * z + 2.08757232129817482790e-09;
  c = c * z + -2.75573143513906633035e-07;
  c = c * z + 2.48015872894767294178e-05;
  c = c * z + -1.38888888888741095749e-03;
  c = c * z + 4.16666666666666019037e-02;
  const double cosine = (1.0 - 0.5 * z) + (z * z) * c;
  switch (static_cast<uint32_t>(n) % 4) {
    case 0: return {sine, cosine};
    case 1: return {cosine, -sine};
    case 2: return {-sine, -cosine};
    default: return {-cosine, sine};
  }
}

void rotate(float* head, const float* cosines, const float* sines, uint32_t half) {
  for (uint32_t i = 0; i < half; ++i) {
    const float a = head[i];
    const float b = head[i + half];
    head[i] = a * cosines[i] - b * sines[i];
    head[i + half] = b * cosines[i] + a * sines[i];
  }
}

}  // namespace
}  // namespace tinyqmoe

extern "C" {

tinyqmoe_status tinyqmoe_rms_norm(const tinyqmoe_rms_norm_args* args, uint64_t row_begin, uint64_t row_end,
                                  tinyqmoe_isa isa) {
  if (args == nullptr || args->cols == 0 || row_begin > row_end) return TINYQMOE_BAD_ARGUMENT;
  if (row_begin == row_end) return TINYQMOE_OK;
  if (args->x == nullptr || args->weight == nullptr || args->y == nullptr) return TINYQMOE_BAD_ARGUMENT;
  const tinyqmoe::LayerKernels* kernels = tinyqmoe::layer_kernels_for(isa);
  if (kernels == nullptr) return TINYQMOE_NO_ISA;
  for (uint64_t row = row_begin; row < row_end; ++row) kernels->rms_norm(*args, row);
  return TINYQMOE_OK;
}

tinyqmoe_status tinyqmoe_rope_angles(const float* frequencies, uint32_t n_pairs, uint32_t position, uint32_t n_tokens,
                                     float* cosines, float* sines) {
  if (n_pairs == 0 || n_tokens == 0) return TINYQMOE_OK;
  if (frequencies == nullptr || cosines == nullptr || sines == nullptr) return TINYQMOE_BAD_ARGUMENT;
  for (uint64_t t = 0; t < n_tokens; ++t) {
    const float at = static_cast<float>(position + t);
    for (uint32_t i = 0; i < n_pairs; ++i) {
      const float angle = at * frequencies[i];
      if (!(angle >= 0.0f && angle < 0x1p20f)) return TINYQMOE_BAD_ARGUMENT;
      const tinyqmoe::Angle both = tinyqmoe::turn(angle);
      cosines[t * n_pairs + i] = static_cast<float>(both.cosine);
      sines[t * n_pairs + i] = static_cast<float>(both.sine);
    }
  }
  return TINYQMOE_OK;
}

tinyqmoe_status tinyqmoe_rope(const tinyqmoe_rope_args* args, uint32_t token_begin, uint32_t token_end) {
  if (args == nullptr || args->head_dim % 2 != 0 || token_begin > token_end) return TINYQMOE_BAD_ARGUMENT;
  if (token_begin == token_end) return TINYQMOE_OK;
  if (args->x == nullptr || args->cosines == nullptr || args->sines == nullptr) return TINYQMOE_BAD_ARGUMENT;
  const uint32_t half = args->head_dim / 2;
  for (uint64_t t = token_begin; t < token_end; ++t) {
    for (uint64_t h = 0; h < args->heads; ++h) {
      float* const head = args->x + (t * args->heads + h) * args->head_dim;
      tinyqmoe::rotate(head, args->cosines + t * half, args->sines + t * half, half);
    }
  }
  return TINYQMOE_OK;
}

tinyqmoe_status tinyqmoe_swiglu(float* gate, const float* up, uint64_t n, tinyqmoe_isa isa) {
  if (n == 0) return TINYQMOE_OK;
  if (gate == nullptr || up == nullptr) return TINYQMOE_BAD_ARGUMENT;
  const tinyqmoe::LayerKernels* kernels = tinyqmoe::layer_kernels_for(isa);
  if (kernels == nullptr) return TINYQMOE_NO_ISA;
  kernels->swiglu(gate, up, n);
  return TINYQMOE_OK;
}

tinyqmoe_status tinyqmoe_add(float* x, const float* y, uint64_t n) {
  if (n == 0) return TINYQMOE_OK;
  if (x == nullptr || y == nullptr) return TINYQMOE_BAD_ARGUMENT;
  for (uint64_t i = 0; i < n; ++i) x[i] += y[i];
  return TINYQMOE_OK;
}

tinyqmoe_status tinyqmoe_add_bias(float* x, const float* bias, uint32_t n_tokens, uint32_t cols) {
  if (n_tokens == 0 || cols == 0) return TINYQMOE_OK;
  if (x == nullptr || bias == nullptr) return TINYQMOE_BAD_ARGUMENT;
  for (uint64_t t = 0; t < n_tokens; ++t) {
    for (uint64_t i = 0; i < cols; ++i) x[t * cols + i] += bias[i];
  }
  return TINYQMOE_OK;
}

}  // extern "C"
