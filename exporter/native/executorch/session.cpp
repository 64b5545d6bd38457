// The engine of a session that runs the program itself, through ExecuTorch's Module.
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

#include "bundle.h"
#include "common.h"
#include "engine.h"
#include "open_tensors.h"

namespace tinyqmoe_executorch {
namespace {

using executorch::extension::from_blob;
using executorch::extension::Module;
using executorch::runtime::Program;

constexpr char kForward[] = "forward";

tinyqmoe_status status_of(Error error) {
  return error == Error::MemoryAllocationFailed ? TINYQMOE_OUT_OF_MEMORY : TINYQMOE_BAD_ARGUMENT;
}

class ProgramEngine : public tinyqmoe::Engine {
 public:
  explicit ProgramEngine(const tinyqmoe::ProgramFile& program)
      : path_(program.path), module_(program.path, Module::LoadMode::Mmap) {
    memory_.kv_cache_bytes = program.kv_cache_bytes;
  }

  tinyqmoe_status open(uint32_t batch_tokens, std::string* error) {
    tinyqmoe::MappedFile file;
    if (!file.open(path_)) {
      *error = path_ + " cannot be read";
      return TINYQMOE_BAD_ARGUMENT;
    }
    memory_.mapped_bytes = file.size();
    Error failed = module_.load(Program::Verification::InternalConsistency);
    if (failed == Error::Ok) failed = read_sizes(batch_tokens);
    if (failed == Error::Ok) failed = module_.load_method(kForward);
    if (failed == Error::Ok) return TINYQMOE_OK;
    *error = path_ + " does not load: " + executorch::runtime::to_string(failed);
    if (failed == Error::OperatorMissing) *error += ": link tinyqmoe_executorch of the bundle's release, whole";
    return status_of(failed);
  }

  tinyqmoe::EngineSizes sizes() const override { return sizes_; }
  tinyqmoe::EngineMemory memory() const override { return memory_; }

  tinyqmoe_status forward(const int32_t* tokens, uint32_t n_tokens, uint32_t position, float* logits) override {
    const auto is_token = [&](int32_t t) { return t >= 0 && static_cast<uint32_t>(t) < sizes_.vocab; };
    if (!std::all_of(tokens, tokens + n_tokens, is_token)) return TINYQMOE_BAD_ID;
    tokens_.assign(tokens, tokens + n_tokens);
    int64_t at = position;
    const auto ids = from_blob(tokens_.data(), {1, static_cast<SizesType>(n_tokens)}, ScalarType::Long);
    const auto input_pos = from_blob(&at, {1}, ScalarType::Long);
    last_failure() = TINYQMOE_OK;
    tinyqmoe_program_tensors_use(&tensors_);
    const auto outputs = module_.forward({ids, input_pos});
    tinyqmoe_program_tensors_use(nullptr);
    if (!outputs.ok()) return last_failure() != TINYQMOE_OK ? last_failure() : status_of(outputs.error());
    const float* const values = outputs->at(0).toTensor().const_data_ptr<float>();
    if (logits != nullptr) std::copy(values, values + sizes_.vocab, logits);
    return TINYQMOE_OK;
  }

 private:
  Error read_sizes(uint32_t batch_tokens) {
    const auto most = module_.get("get_max_seq_len"), context = module_.get("get_max_context_len");
    if (!most.ok() || !context.ok()) return most.ok() ? context.error() : most.error();
    const auto meta = module_.method_meta(kForward);
    if (!meta.ok()) return meta.error();
    const auto logits = meta->output_tensor_meta(0);
    if (!logits.ok()) return logits.error();
    sizes_.batch_tokens = std::min(batch_tokens, static_cast<uint32_t>(most->toInt()));
    sizes_.context = static_cast<uint32_t>(context->toInt());
    sizes_.vocab = static_cast<uint32_t>(logits->sizes()[logits->sizes().size() - 1]);
    sizes_.n_threads = static_cast<uint32_t>(executorch::extension::get_thread_count());
    uint64_t planned = 0;
    for (size_t i = 0; i < meta->num_memory_planned_buffers(); ++i) {
      planned += static_cast<uint64_t>(meta->memory_planned_buffer_size(i).get());
    }
    memory_.buffer_bytes = planned - std::min(planned, memory_.kv_cache_bytes);
    return Error::Ok;
  }

  std::string path_;
  Module module_;
  OpenTensors tensors_{false};  // gone before the module whose bytes they borrow
  tinyqmoe::EngineSizes sizes_ = {};
  tinyqmoe::EngineMemory memory_ = {};
  std::vector<int64_t> tokens_;
};

tinyqmoe_status open_program(const tinyqmoe_session_options& options, std::unique_ptr<tinyqmoe::Engine>* out,
                             std::string* error) {
  if (options.context != 0 || options.n_threads != 0 || options.kv_type != 0 || options.isa != 0) {
    *error = "options: with ExecuTorch, context, n_threads, kv_type and isa must be 0: the program and ExecuTorch's "
             "threads decide them";
    return TINYQMOE_BAD_ARGUMENT;
  }
  tinyqmoe::ProgramFile program;
  if (!tinyqmoe::find_program(options.bundle, &program, error)) return TINYQMOE_BAD_ARGUMENT;
  auto engine = std::make_unique<ProgramEngine>(program);
  const tinyqmoe_status status = engine->open(options.batch_tokens, error);
  if (status == TINYQMOE_OK) *out = std::move(engine);
  return status;
}

[[maybe_unused]] const bool g_is_known = (tinyqmoe::set_executorch_engine(open_program), true);

}  // namespace
}  // namespace tinyqmoe_executorch
