/* Tiny-QMoE core: what a decoder layer computes between its products.
 *
 * Everything is float32, rounded operation by operation to nearest even, without contraction and without
 * a math library, in the order this header gives. So every implementation (scalar, AVX2, AVX-512, NEON)
 * gives the same bits, whatever the number of threads, and however tokens are split into calls. NaN and
 * infinite values pass through; of those the bits are not defined, and the next product refuses them.
 *
 * No function keeps state, starts a thread or allocates. Callers share work by ranges of rows or items.
 *
 * sum16(v): p[k] = +0.0, then p[k] += v[i] for i = k, k + 16, ... in ascending order, 0 <= k < 16; then
 * p[k] += p[k + 8] for k < 8, p[k] += p[k + 4] for k < 4, p[k] += p[k + 2] for k < 2, and p[0] + p[1].
 *
 * exp(x): 0 below -64, and exp(88) above 88. Else t = x * 0x1.715476p+0 + 0x1.8p+23, n = t - 0x1.8p+23,
 * r = (x - n * 0x1.63p-1) - n * -0x1.bd0106p-13, and the result is ((p * (r * r) + r) + 1) * 2^n, where by Horner's
 * rule p = 1.9875691500e-4 r^5 + 1.3981999507e-3 r^4 + 8.3334519073e-3 r^3 + 4.1665795894e-2 r^2 +
 * 1.6666665459e-1 r + 5.0000001201e-1. */
#ifndef TINYQMOE_LLM_H_
#define TINYQMOE_LLM_H_

#include "tinyqmoe/tinyqmoe.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What AUTO stands for in this header. Functions that take an instruction set accept each that the products have on this
 * machine; for the sdot and smmla forms NEON's is used, and AVX2's needs F16C too, which all but emulated processors have. */
TINYQMOE_API tinyqmoe_isa tinyqmoe_llm_best_isa(void);

/* RMSNorm of rows: m = sum16(x[i] * x[i]) / cols, r = 1 / sqrt(m + eps), y[i] = (x[i] * r) * weight[i]. A row is a
 * token's hidden state, or one head of it. */
typedef struct tinyqmoe_rms_norm_args {
  const float* x;      /* [rows, cols] */
  const float* weight; /* [cols] */
  float* y;            /* [rows, cols]; may be x */
  uint32_t cols;
  float eps;
} tinyqmoe_rms_norm_args;
TINYQMOE_API tinyqmoe_status tinyqmoe_rms_norm(const tinyqmoe_rms_norm_args* args, uint64_t row_begin,
                                               uint64_t row_end, tinyqmoe_isa isa);

/* Cosines and sines of the angles a = position * frequency, rounded to float32 as Hugging Face computes them, then
 * taken in double by Cody and Waite's reduction and fdlibm's polynomials, and rounded once.
 * frequencies: [n_pairs], radians a position; cosines, sines: [n_tokens, n_pairs]. BAD_ARGUMENT: an angle that is
 * negative, not a number, or 2^20 or more. */
TINYQMOE_API tinyqmoe_status tinyqmoe_rope_angles(const float* frequencies, uint32_t n_pairs, uint32_t position,
                                                  uint32_t n_tokens, float* cosines, float* sines);

/* RoPE in place, pairs (i, i + D/2) as in Hugging Face: a' = a cos - b sin, b' = b cos + a sin. */
typedef struct tinyqmoe_rope_args {
  float* x;             /* [n_tokens, heads, head_dim] */
  const float* cosines; /* [n_tokens, head_dim / 2] */
  const float* sines;
  uint32_t heads;
  uint32_t head_dim; /* even */
} tinyqmoe_rope_args;
TINYQMOE_API tinyqmoe_status tinyqmoe_rope(const tinyqmoe_rope_args* args, uint32_t token_begin, uint32_t token_end);

/* The cache of one layer. With D = head_dim, E = D rounded up to 16 and C = context rounded up to 16, its bytes are
 *   keys   T [kv_heads, C / 16, D, 16]   so that 16 positions are multiplied at a time
 *   values T [kv_heads, C, E]            so that a position is added in one go
 *   key scales, value scales, float [kv_heads, C] each, with INT8 only
 * each part on a multiple of 64 bytes. FLOAT16 is IEEE half precision, rounded to nearest even; INT8 has one scale a
 * head and token: a = max |x|; if a < 2^-100 scale 0 and all zero, else scale = a / 127 and the level is
 * round_half_even(x * (127 / a)). What a cache holds before it is written does not matter. */
typedef enum tinyqmoe_kv_type { TINYQMOE_KV_FLOAT16 = 1, TINYQMOE_KV_FLOAT32 = 2, TINYQMOE_KV_INT8 = 3 } tinyqmoe_kv_type;

typedef struct tinyqmoe_kv_cache {
  void* bytes; /* aligned to 64 bytes */
  tinyqmoe_kv_type type;
  uint32_t kv_heads;
  uint32_t head_dim; /* at most 1024 */
  uint32_t context;
} tinyqmoe_kv_cache;

/* Of a cache of this shape; `bytes` is not looked at. 0: no such cache. */
TINYQMOE_API uint64_t tinyqmoe_kv_cache_bytes(const tinyqmoe_kv_cache* shape);

/* Stores tokens from `position` on, for heads [head_begin, head_end). BAD_ARGUMENT: past the context. */
typedef struct tinyqmoe_kv_write_args {
  const float* k; /* [n_tokens, kv_heads, head_dim] */
  const float* v;
  uint32_t position;
  uint32_t n_tokens;
} tinyqmoe_kv_write_args;
TINYQMOE_API tinyqmoe_status tinyqmoe_kv_cache_write(const tinyqmoe_kv_cache* cache, const tinyqmoe_kv_write_args* args,
                                                     uint32_t head_begin, uint32_t head_end);

/* Causal grouped-query attention of tokens at `position` on, whose keys and values are in the cache. For query head h
 * of a token, which reads head h / (heads / kv_heads) of the cache, over the positions j it sees:
 *   s[j] = (sum over d, ascending from 0.0, of q[d] * key[j][d]) * (1 / sqrt(D)); with INT8 the sum is first
 *          multiplied by the key's scale
 *   e[j] = exp(s[j] - max s), z = sum16(e); with INT8, e[j] is then multiplied by the value's scale
 *   y[d] = t[d] / z, with t[d] = 0.0 + b[0] + b[1] + ..., b[i] = the sum, ascending from 0.0, of e[j] * value[j][d] over
 *          the positions 128 i <= j < 128 (i + 1).
 * The work comes in items, which any thread may take; each needs scratch of its own. */
typedef struct tinyqmoe_attention_args {
  const tinyqmoe_kv_cache* cache;
  const float* q; /* [n_tokens, heads, head_dim] */
  float* y;       /* [n_tokens, heads, head_dim]; not q */
  uint32_t heads; /* a multiple of kv_heads */
  uint32_t position;
  uint32_t n_tokens;
} tinyqmoe_attention_args;
TINYQMOE_API uint64_t tinyqmoe_attention_items(const tinyqmoe_attention_args* args);         /* 0: arguments are bad */
TINYQMOE_API uint64_t tinyqmoe_attention_scratch_bytes(const tinyqmoe_attention_args* args); /* of one call; likewise */
TINYQMOE_API tinyqmoe_status tinyqmoe_attention(const tinyqmoe_attention_args* args, uint64_t item_begin,
                                                uint64_t item_end, tinyqmoe_isa isa, void* scratch);

/* One token in three steps, whose items are smaller: scores divided by positions, weights by query heads, values by
 * columns. A step begins when all items of the one before are done, and all share scratch. The bits are the same.
 * in_steps: whether that pays, because positions are many and whole items would not divide evenly among the threads. */
typedef enum tinyqmoe_attention_step {
  TINYQMOE_ATTENTION_SCORES = 1,
  TINYQMOE_ATTENTION_WEIGHTS = 2,
  TINYQMOE_ATTENTION_VALUES = 3
} tinyqmoe_attention_step;
TINYQMOE_API bool tinyqmoe_attention_in_steps(const tinyqmoe_attention_args* args, uint32_t n_threads);
TINYQMOE_API uint64_t tinyqmoe_attention_shared_bytes(const tinyqmoe_attention_args* args); /* 0: arguments are bad */
TINYQMOE_API uint64_t tinyqmoe_attention_step_items(const tinyqmoe_attention_args* args, tinyqmoe_attention_step step);
TINYQMOE_API tinyqmoe_status tinyqmoe_attention_do_step(const tinyqmoe_attention_args* args, tinyqmoe_attention_step step,
                                                        uint64_t item_begin, uint64_t item_end, tinyqmoe_isa isa,
                                                        void* shared);

/* gate[i] = (gate[i] / (1 + exp(-gate[i]))) * up[i]. */
TINYQMOE_API tinyqmoe_status tinyqmoe_swiglu(float* gate, const float* up, uint64_t n, tinyqmoe_isa isa);

/* x[i] += y[i]: a residual. */
TINYQMOE_API tinyqmoe_status tinyqmoe_add(float* x, const float* y, uint64_t n);

/* x[t][i] += bias[i]. */
TINYQMOE_API tinyqmoe_status tinyqmoe_add_bias(float* x, const float* bias, uint32_t n_tokens, uint32_t cols);

#ifdef __cplusplus
}
#endif
#endif /* TINYQMOE_LLM_H_ */
