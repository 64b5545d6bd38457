// The C interface of session.h.
#include "tinyqmoe/session.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "bundle.h"
#include "engine.h"

struct tinyqmoe_session {
  std::unique_ptr<tinyqmoe::Engine> engine;
  tinyqmoe::EngineSizes sizes = {};
  std::vector<float> logits;
  uint32_t n_positions = 0;
  uint64_t n_fed = 0;
  uint64_t feed_ns = 0;
};

namespace tinyqmoe {
namespace {

constexpr uint32_t kBatchTokens = 128;
constexpr uint32_t kMaxBatchTokens = 4096;

OpenEngine g_open_executorch = nullptr;

// Fields that the caller's struct does not have are zero.
tinyqmoe_session_options with_defaults(const tinyqmoe_session_options& given) {
  tinyqmoe_session_options options = {};
  std::memcpy(&options, &given, std::min<uint64_t>(given.struct_bytes, sizeof options));
  if (options.batch_tokens == 0) options.batch_tokens = kBatchTokens;
  return options;
}

tinyqmoe_status open_engine(const tinyqmoe_session_options& options, std::unique_ptr<Engine>* out,
                            std::string* error) {
  if (options.bundle == nullptr || options.batch_tokens > kMaxBatchTokens) {
    *error = "options: a bundle must be named, and batch_tokens be at most 4096";
    return TINYQMOE_BAD_ARGUMENT;
  }
  if (options.engine == TINYQMOE_ENGINE_RUNNER) return open_runner(options, out, error);
  if (options.engine != TINYQMOE_ENGINE_EXECUTORCH) {
    *error = "options: engine " + std::to_string(options.engine) + " is neither 0, the runner, nor 1, ExecuTorch";
    return TINYQMOE_BAD_ARGUMENT;
  }
  if (g_open_executorch != nullptr) return g_open_executorch(options, out, error);
  *error = "options: the engine ExecuTorch is not in this program: link tinyqmoe_executorch whole, with ExecuTorch, or "
           "choose engine 0, the runner";
  return TINYQMOE_BAD_ARGUMENT;
}

tinyqmoe_status open(const tinyqmoe_session_options& options, std::unique_ptr<tinyqmoe_session>* out,
                     std::string* error) {
  if (options.verify != 0 && options.bundle != nullptr && !verify_package(options.bundle, error)) {
    return TINYQMOE_BAD_PAYLOAD_CRC;
  }
  auto session = std::make_unique<tinyqmoe_session>();
  const tinyqmoe_status status = open_engine(options, &session->engine, error);
  if (status != TINYQMOE_OK) return status;
  session->sizes = session->engine->sizes();
  session->logits.resize(session->sizes.vocab);
  *out = std::move(session);
  return TINYQMOE_OK;
}

void put_text(const std::string& text, char* out, uint64_t out_bytes) {
  if (out == nullptr || out_bytes == 0) return;
  const uint64_t n = std::min<uint64_t>(text.size(), out_bytes - 1);
  std::memcpy(out, text.data(), n);
  out[n] = '\0';
}

tinyqmoe_status feed(tinyqmoe_session* session, const int32_t* tokens, uint32_t n_tokens, float* logits) {
  uint32_t done = 0;
  while (done < n_tokens) {
    const uint32_t n = std::min(session->sizes.batch_tokens, n_tokens - done);
    float* const wanted = done + n == n_tokens ? logits : nullptr;
    const tinyqmoe_status status = session->engine->forward(tokens + done, n, session->n_positions + done, wanted);
    if (status != TINYQMOE_OK) return status;
    done += n;
  }
  return TINYQMOE_OK;
}

}  // namespace

void set_executorch_engine(OpenEngine open) { g_open_executorch = open; }

}  // namespace tinyqmoe

extern "C" {

tinyqmoe_status tinyqmoe_session_open(const tinyqmoe_session_options* options, tinyqmoe_session** out, char* error,
                                      uint64_t error_bytes) {
  if (options == nullptr || out == nullptr) return TINYQMOE_BAD_ARGUMENT;
  *out = nullptr;
  try {
    std::unique_ptr<tinyqmoe_session> session;
    std::string text;
    const tinyqmoe_status status = tinyqmoe::open(tinyqmoe::with_defaults(*options), &session, &text);
    if (status == TINYQMOE_OK) *out = session.release();
    if (status != TINYQMOE_OK) tinyqmoe::put_text(text, error, error_bytes);
    return status;
  } catch (const std::bad_alloc&) {
    tinyqmoe::put_text("no memory", error, error_bytes);
    return TINYQMOE_OUT_OF_MEMORY;
  }
}

tinyqmoe_status tinyqmoe_session_feed(tinyqmoe_session* session, const int32_t* tokens, uint32_t n_tokens,
                                      float* logits) {
  if (session == nullptr || tokens == nullptr || n_tokens == 0) return TINYQMOE_BAD_ARGUMENT;
  if (n_tokens > session->sizes.context - session->n_positions) return TINYQMOE_BAD_ARGUMENT;
  const auto begin = std::chrono::steady_clock::now();
  const tinyqmoe_status status = tinyqmoe::feed(session, tokens, n_tokens, logits);
  if (status != TINYQMOE_OK) return status;
  const auto time = std::chrono::steady_clock::now() - begin;
  session->feed_ns += static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(time).count());
  session->n_positions += n_tokens;
  session->n_fed += n_tokens;
  return TINYQMOE_OK;
}

tinyqmoe_status tinyqmoe_session_step(tinyqmoe_session* session, int32_t token, int32_t* best, float* logits) {
  if (session == nullptr || best == nullptr) return TINYQMOE_BAD_ARGUMENT;
  float* const own = session->logits.data();
  const tinyqmoe_status status = tinyqmoe_session_feed(session, &token, 1, own);
  if (status != TINYQMOE_OK) return status;
  *best = static_cast<int32_t>(std::max_element(own, own + session->logits.size()) - own);
  if (logits != nullptr) std::copy(own, own + session->logits.size(), logits);
  return TINYQMOE_OK;
}

tinyqmoe_status tinyqmoe_session_trim(tinyqmoe_session* session, uint32_t n_positions) {
  if (session == nullptr || n_positions > session->n_positions) return TINYQMOE_BAD_ARGUMENT;
  session->n_positions = n_positions;
  return TINYQMOE_OK;
}

tinyqmoe_status tinyqmoe_session_stats(const tinyqmoe_session* session, tinyqmoe_session_state* out) {
  if (session == nullptr || out == nullptr || out->struct_bytes < sizeof out->struct_bytes) {
    return TINYQMOE_BAD_ARGUMENT;
  }
  tinyqmoe_session_state state = {};
  state.struct_bytes = out->struct_bytes;
  state.n_positions = session->n_positions;
  state.context = session->sizes.context;
  state.vocab = session->sizes.vocab;
  state.n_threads = session->sizes.n_threads;
  const tinyqmoe::EngineMemory memory = session->engine->memory();
  state.mapped_bytes = memory.mapped_bytes;
  state.kv_cache_bytes = memory.kv_cache_bytes;
  state.buffer_bytes = memory.buffer_bytes + session->logits.size() * sizeof(float);
  state.n_fed = session->n_fed;
  state.feed_ns = session->feed_ns;
  std::memcpy(out, &state, std::min<uint64_t>(out->struct_bytes, sizeof state));
  return TINYQMOE_OK;
}

void tinyqmoe_session_close(tinyqmoe_session* session) { delete session; }

}  // extern "C"
