// What computes the logits of a session. The runner is one; ExecuTorch's makes itself known where it is linked.
#ifndef TINYQMOE_LLM_ENGINE_H_
#define TINYQMOE_LLM_ENGINE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "tinyqmoe/session.h"

namespace tinyqmoe {

struct EngineSizes {
  uint32_t context;
  uint32_t vocab;
  uint32_t n_threads;
  uint32_t batch_tokens;  // most tokens of one call
};

struct EngineMemory {
  uint64_t mapped_bytes;
  uint64_t kv_cache_bytes;
  uint64_t buffer_bytes;
};

class Engine {
 public:
  virtual ~Engine() = default;

  virtual EngineSizes sizes() const = 0;  // do not change
  virtual EngineMemory memory() const = 0;

  // Tokens from `position` on: at most batch_tokens, and at most to the context's end. logits: float [vocab] of the
  // last token, or null. On failure the cache holds what it held before `position`.
  virtual tinyqmoe_status forward(const int32_t* tokens, uint32_t n_tokens, uint32_t position, float* logits) = 0;
};

// *out is an engine if it returns TINYQMOE_OK; else *error says what is wrong. options has a bundle, and batch_tokens.
using OpenEngine = tinyqmoe_status (*)(const tinyqmoe_session_options& options, std::unique_ptr<Engine>* out,
                                       std::string* error);

tinyqmoe_status open_runner(const tinyqmoe_session_options& options, std::unique_ptr<Engine>* out, std::string* error);

// For a static initialiser.
void set_executorch_engine(OpenEngine open);

}  // namespace tinyqmoe
#endif  // TINYQMOE_LLM_ENGINE_H_
