// The inner loops of a decoder layer, one table of functions an instruction set. All give the same bits.
#ifndef TINYQMOE_LLM_LAYER_KERNELS_H_
#define TINYQMOE_LLM_LAYER_KERNELS_H_

#include <cstdint>

#include "tinyqmoe/llm.h"

namespace tinyqmoe {

constexpr uint32_t kLanes = 16;
constexpr uint32_t kValueBlock = 128;  // positions whose weighted values are summed before they join the total
constexpr uint32_t kMaxQueries = 4;    // query heads that share one pass over a head of the cache

// What is done of a task: scores are divided by positions, and values by columns, which changes no sum.
enum class AttentionStep {
  kWhole,
  kScores = TINYQMOE_ATTENTION_SCORES,
  kWeights = TINYQMOE_ATTENTION_WEIGHTS,
  kValues = TINYQMOE_ATTENTION_VALUES
};

struct Range {
  uint32_t begin, end;
};

// Query heads of one token that read the same head of the cache.
struct AttentionTask {
  AttentionStep step;
  Range positions;  // of the scores: multiples of kLanes, but the end of all
  Range columns;    // of the values: multiples of kLanes
  const float* q;  // [queries][head_dim]
  const void* keys;
  const void* values;
  const float* key_scales;    // null but for int8
  const float* value_scales;
  uint32_t queries;  // 1 to kMaxQueries
  uint32_t head_dim;
  uint32_t value_stride;  // head_dim rounded up to kLanes
  uint32_t length;        // positions seen
  float* scores;          // [queries][length rounded up to kLanes]
  float* sums;            // [queries]: of the weights
  float* totals;          // [queries][value_stride]
  float* y;               // [queries][head_dim]
};

struct LayerKernels {
  void (*rms_norm)(const tinyqmoe_rms_norm_args& args, uint64_t row);
  void (*swiglu)(float* gate, const float* up, uint64_t n);
  void (*attend[3])(const AttentionTask& task);  // by tinyqmoe_kv_type, from FLOAT16 on
};

// Null when this machine (or this build) lacks the instruction set.
const LayerKernels* layer_kernels_for(tinyqmoe_isa isa);
const LayerKernels* layer_kernels_scalar();
const LayerKernels* layer_kernels_avx2();
const LayerKernels* layer_kernels_avx512();
const LayerKernels* layer_kernels_neon();
const LayerKernels* layer_kernels_simd128();

}  // namespace tinyqmoe
#endif  // TINYQMOE_LLM_LAYER_KERNELS_H_
