// The engine that needs nothing but the core: a bundle's weights, a pool of threads and a runner.
#include <algorithm>

#include "bundle.h"
#include "engine.h"
#include "pool.h"
#include "runner.h"
#include "threads.h"

namespace tinyqmoe {
namespace {

class RunnerEngine : public Engine {
 public:
  explicit RunnerEngine(uint32_t n_threads) : pool_(n_threads) {}

  tinyqmoe_status open(const tinyqmoe_session_options& given, std::string* error) {
    const tinyqmoe_status status = bundle_.open(given.bundle, error);
    if (status != TINYQMOE_OK) return status;
    const Network& network = bundle_.network();
    options_.context = given.context != 0 ? given.context : network.context;
    options_.batch_tokens = std::min(given.batch_tokens, options_.context);
    options_.kv_type = given.kv_type != 0 ? given.kv_type : network.kv_type;
    options_.isa = given.isa;
    runner_ = std::make_unique<Runner>(&pool_, options_);
    return runner_->open(&bundle_, error);
  }

  EngineSizes sizes() const override {
    return {options_.context, bundle_.network().vocab, pool_.n_threads(), options_.batch_tokens};
  }

  EngineMemory memory() const override {
    return {bundle_.mapped_bytes(), runner_->kv_cache_bytes(), runner_->buffer_bytes()};
  }

  tinyqmoe_status forward(const int32_t* tokens, uint32_t n_tokens, uint32_t position, float* logits) override {
    return runner_->forward(tokens, n_tokens, position, logits);
  }

 private:
  Bundle bundle_;
  Pool pool_;
  RunnerOptions options_ = {};
  std::unique_ptr<Runner> runner_;
};

bool has_isa(tinyqmoe_isa isa) {
  float x = 1.0f;
  return tinyqmoe_swiglu(&x, &x, 1, isa) == TINYQMOE_OK;
}

}  // namespace

tinyqmoe_status open_runner(const tinyqmoe_session_options& options, std::unique_ptr<Engine>* out,
                            std::string* error) {
  if (!has_isa(options.isa)) {
    *error = "options: this machine lacks the instruction set";
    return TINYQMOE_NO_ISA;
  }
  const uint32_t n_threads = options.n_threads != 0 ? options.n_threads : std::max(1u, machine_threads());
  auto engine = std::make_unique<RunnerEngine>(n_threads);
  const tinyqmoe_status status = engine->open(options, error);
  if (status == TINYQMOE_OK) *out = std::move(engine);
  return status;
}

}  // namespace tinyqmoe
