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
#include "pool.h"
#include "runner.h"
#include "threads.h"

struct tinyqmoe_session {
  explicit tinyqmoe_session(uint32_t n_threads) : pool(n_threads) {}

  tinyqmoe::Bundle bundle;
  tinyqmoe::Pool pool;
  std::unique_ptr<tinyqmoe::Runner> runner;
  std::vector<float> logits;
  uint32_t context = 0;
  uint32_t batch_tokens = 0;
  uint32_t n_positions = 0;
  uint64_t n_fed = 0;
  uint64_t feed_ns = 0;
};

namespace tinyqmoe {
namespace {

constexpr uint32_t kBatchTokens = 128;
constexpr uint32_t kMaxBatchTokens = 4096;

bool has_isa(tinyqmoe_isa isa) {
  float x = 1.0f;
  return tinyqmoe_swiglu(&x, &x, 1, isa) == TINYQMOE_OK;
}

// Fields that the caller's struct does not have are zero.
tinyqmoe_session_options with_defaults(const tinyqmoe_session_options& given) {
  tinyqmoe_session_options options = {};
  std::memcpy(&options, &given, std::min<uint64_t>(given.struct_bytes, sizeof options));
  if (options.n_threads == 0) options.n_threads = std::max(1u, machine_threads());
  if (options.batch_tokens == 0) options.batch_tokens = kBatchTokens;
  return options;
}

tinyqmoe_status open(const tinyqmoe_session_options& options, std::unique_ptr<tinyqmoe_session>* out,
                     std::string* error) {
  if (options.bundle == nullptr || options.batch_tokens > kMaxBatchTokens) {
    *error = "options: a bundle must be named, and batch_tokens be at most 4096";
    return TINYQMOE_BAD_ARGUMENT;
  }
  if (!has_isa(options.isa)) {
    *error = "options: this machine lacks the instruction set";
    return TINYQMOE_NO_ISA;
  }
  auto session = std::make_unique<tinyqmoe_session>(options.n_threads);
  tinyqmoe_status status = session->bundle.open(options.bundle, error);
  if (status != TINYQMOE_OK) return status;
  session->context = options.context != 0 ? options.context : session->bundle.network().context;
  session->batch_tokens = std::min(options.batch_tokens, session->context);
  const tinyqmoe_kv_type kv_type = options.kv_type != 0 ? options.kv_type : session->bundle.network().kv_type;
  const RunnerOptions runner = {session->context, session->batch_tokens, kv_type, options.isa};
  session->runner = std::make_unique<Runner>(&session->pool, runner);
  status = session->runner->open(&session->bundle, error);
  session->logits.resize(session->bundle.network().vocab);
  *out = std::move(session);
  return status;
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
    const uint32_t n = std::min(session->batch_tokens, n_tokens - done);
    float* const wanted = done + n == n_tokens ? logits : nullptr;
    const tinyqmoe_status status = session->runner->forward(tokens + done, n, session->n_positions + done, wanted);
    if (status != TINYQMOE_OK) return status;
    done += n;
  }
  return TINYQMOE_OK;
}

}  // namespace
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
  if (n_tokens > session->context - session->n_positions) return TINYQMOE_BAD_ARGUMENT;
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
  state.context = session->context;
  state.vocab = session->bundle.network().vocab;
  state.n_threads = session->pool.n_threads();
  state.mapped_bytes = session->bundle.mapped_bytes();
  state.kv_cache_bytes = session->runner->kv_cache_bytes();
  state.buffer_bytes = session->runner->buffer_bytes() + session->logits.size() * sizeof(float);
  state.n_fed = session->n_fed;
  state.feed_ns = session->feed_ns;
  std::memcpy(out, &state, std::min<uint64_t>(out->struct_bytes, sizeof state));
  return TINYQMOE_OK;
}

void tinyqmoe_session_close(tinyqmoe_session* session) { delete session; }

}  // extern "C"
