// A session over a bundle: the same logits for every instruction set, number of threads and split into calls.
#include <algorithm>
#include <memory>

#include "support.h"
#include "threads.h"
#include "tinyqmoe/session.h"

namespace tests {
namespace {

struct Close {
  void operator()(tinyqmoe_session* session) const { tinyqmoe_session_close(session); }
};
using Session = std::unique_ptr<tinyqmoe_session, Close>;

Session open(const std::string& bundle, tinyqmoe_kv_type type, tinyqmoe_isa isa, uint32_t n_threads, uint32_t batch) {
  tinyqmoe_session_options options = {};
  options.struct_bytes = sizeof options;
  options.bundle = bundle.c_str();
  options.kv_type = type;
  options.isa = isa;
  options.n_threads = n_threads;
  options.batch_tokens = batch;
  tinyqmoe_session* session = nullptr;
  char error[200] = "";
  const tinyqmoe_status status = tinyqmoe_session_open(&options, &session, error, sizeof error);
  CHECK(status == TINYQMOE_OK);
  if (status != TINYQMOE_OK) std::printf("%s: %s\n", bundle.c_str(), error);
  return Session(session);
}

tinyqmoe_session_state state_of(const Session& session) {
  tinyqmoe_session_state state = {};
  state.struct_bytes = sizeof state;
  CHECK(tinyqmoe_session_stats(session.get(), &state) == TINYQMOE_OK);
  return state;
}

// Feeds the tokens in calls of random lengths and returns the last logits.
Floats feed(const Session& session, const std::vector<int32_t>& tokens, Random& random) {
  Floats logits(state_of(session).vocab);
  for (uint32_t at = 0; at < tokens.size();) {
    const uint32_t n = between(random, 1, static_cast<uint32_t>(tokens.size()) - at);
    CHECK(tinyqmoe_session_feed(session.get(), tokens.data() + at, n, logits.data()) == TINYQMOE_OK);
    at += n;
  }
  return logits;
}

void test_bad_calls(const Session& session) {
  const tinyqmoe_session_state before = state_of(session);
  const std::vector<int32_t> too_many(before.context - before.n_positions + 1, 1);
  Floats logits(before.vocab);
  int32_t best;
  const int32_t outside[] = {1, -1}, past[] = {static_cast<int32_t>(before.vocab)};
  CHECK(tinyqmoe_session_feed(session.get(), too_many.data(), static_cast<uint32_t>(too_many.size()), nullptr) ==
        TINYQMOE_BAD_ARGUMENT);
  CHECK(tinyqmoe_session_feed(session.get(), too_many.data(), 0, nullptr) == TINYQMOE_BAD_ARGUMENT);
  CHECK(tinyqmoe_session_feed(session.get(), outside, 2, logits.data()) == TINYQMOE_BAD_ID);
  CHECK(tinyqmoe_session_step(session.get(), past[0], &best, nullptr) == TINYQMOE_BAD_ID);
  CHECK(tinyqmoe_session_step(session.get(), 1, nullptr, nullptr) == TINYQMOE_BAD_ARGUMENT);
  CHECK(tinyqmoe_session_trim(session.get(), before.n_positions + 1) == TINYQMOE_BAD_ARGUMENT);
  CHECK(state_of(session).n_positions == before.n_positions);
  tinyqmoe_session_close(nullptr);
}

void test_steps(const Session& session, const std::vector<int32_t>& tokens, const Floats& expected) {
  const uint32_t n = static_cast<uint32_t>(tokens.size());
  CHECK(tinyqmoe_session_trim(session.get(), n / 2) == TINYQMOE_OK);
  int32_t best = -1;
  Floats logits(expected.size());
  for (uint32_t i = n / 2; i < n; ++i) {
    CHECK(tinyqmoe_session_step(session.get(), tokens[i], &best, logits.data()) == TINYQMOE_OK);
  }
  CHECK(same_bits(logits, expected));
  CHECK(best == std::max_element(expected.begin(), expected.end()) - expected.begin());
}

}  // namespace

void test_session(const std::string& bundle) {
  Random random(6), calls(15);
  g_context = bundle;
  const Session first = open(bundle, TINYQMOE_KV_FLOAT16, TINYQMOE_ISA_SCALAR, 1, 0);
  if (first == nullptr) return;
  const tinyqmoe_session_state state = state_of(first);
  std::vector<int32_t> tokens(std::min(state.context, 40u));
  for (int32_t& token : tokens) token = static_cast<int32_t>(below(random, state.vocab));
  for (const tinyqmoe_kv_type type : {TINYQMOE_KV_FLOAT32, TINYQMOE_KV_FLOAT16, TINYQMOE_KV_INT8}) {
    const Floats expected = feed(open(bundle, type, TINYQMOE_ISA_SCALAR, 1, 0), tokens, calls);
    digest(expected);
    for (const tinyqmoe_isa isa : llm_isas()) {
      const uint32_t n_threads = std::min(between(calls, 1, 5), tinyqmoe::kMaxThreads), batch = between(calls, 1, 50);
      g_context = bundle + ", cache " + std::to_string(type) + ", instruction set " + std::to_string(isa) + ", " +
                  std::to_string(n_threads) + " threads, batches of " + std::to_string(batch);
      const Session session = open(bundle, type, isa, n_threads, batch);
      CHECK(same_bits(feed(session, tokens, calls), expected));
      CHECK(state_of(session).n_positions == tokens.size() && state_of(session).n_threads == n_threads);
      test_steps(session, tokens, expected);
      test_bad_calls(session);
    }
  }
}

}  // namespace tests
