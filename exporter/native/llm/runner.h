// A decoder of Llama's shape over the functions of llm.h and the products.
//
// What a family adds is told by the vectors that a bundle has: biases of products (Qwen2, Llama's options), norms of each
// head of q and k (Qwen3), and by a head of its own. A vector or a matrix that the runner does not use is an error.
#ifndef TINYQMOE_LLM_RUNNER_H_
#define TINYQMOE_LLM_RUNNER_H_

#include <initializer_list>
#include <string>
#include <vector>

#include "bundle.h"
#include "pool.h"
#include "products.h"
#include "tinyqmoe/llm.h"

namespace tinyqmoe {

struct RunnerOptions {
  uint32_t context;
  uint32_t batch_tokens;  // most tokens of one call
  tinyqmoe_kv_type kv_type;
  tinyqmoe_isa isa;
};

class Runner {
 public:
  Runner(Pool* pool, const RunnerOptions& options);

  // Finds every weight and takes all memory. *error names what does not fit.
  tinyqmoe_status open(Bundle* bundle, std::string* error);

  // Tokens from `position` on: at most batch_tokens, and at most to the context's end. logits: float [vocab] of the
  // last token, or null, which spares the head. On failure the cache holds what it held before `position`.
  tinyqmoe_status forward(const int32_t* tokens, uint32_t n_tokens, uint32_t position, float* logits);

  uint64_t kv_cache_bytes() const { return kv_memory_.size(); }
  uint64_t buffer_bytes() const;

 private:
  struct Linear {
    const Matrix* matrix;
    const float* bias;  // null where there is none
  };
  struct Output {
    const Linear* linear;
    float* y;  // [n_tokens, rows]
  };
  struct Layer {
    Linear q, k, v, o, gate, up, down;
    const float *attention_norm, *mlp_norm;
    const float *q_norm, *k_norm;  // null where there are none
    tinyqmoe_kv_cache cache;
  };

  bool find_weights(Bundle* bundle, std::string* error);
  bool find_layer(Bundle* bundle, const std::string& prefix, Layer* layer, std::string* missing);
  std::vector<const Matrix*> matrices() const;
  tinyqmoe_status take_memory();
  tinyqmoe_status linear(const float* x, uint32_t n_tokens, std::initializer_list<Output> outputs);
  tinyqmoe_status embed(const int32_t* tokens, uint32_t n_tokens);
  tinyqmoe_status attention(const Layer& layer, uint32_t n_tokens, uint32_t position);
  tinyqmoe_status attend(const Layer& layer, uint32_t n_tokens, uint32_t position);
  tinyqmoe_status attend_in_steps(const tinyqmoe_attention_args& args);
  tinyqmoe_status mlp(const Layer& layer, uint32_t n_tokens);
  tinyqmoe_status rms_norm(const float* x, const float* weight, float* y, uint64_t rows, uint32_t cols);
  tinyqmoe_status prepare_heads(float* x, const float* norm, uint32_t heads, uint32_t n_tokens);

  Pool* pool_;
  RunnerOptions options_;
  Products products_;
  Network net_ = {};
  std::vector<Layer> layers_;
  const Matrix* embedding_ = nullptr;
  const Matrix* head_ = nullptr;
  const float* final_norm_ = nullptr;
  const float* frequencies_ = nullptr;

  Buffer kv_memory_;
  Buffer work_;
  // Parts of work_, each of batch_tokens rows:
  float *x_, *normed_, *q_, *k_, *v_, *attended_, *gate_, *up_, *cosines_, *sines_;
  std::vector<Buffer> attention_scratch_;  // one a thread
  std::vector<int64_t> ids_;
};

}  // namespace tinyqmoe
#endif  // TINYQMOE_LLM_RUNNER_H_
