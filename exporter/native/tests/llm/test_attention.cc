// Cache and attention: every type and instruction set against the definition, tokens split at random into calls, and
// the items of a call over threads.
#include <atomic>
#include <cmath>
#include <memory>

#include "half.h"
#include "reference.h"
#include "support.h"
#include "threads.h"

namespace tests {
namespace {

constexpr uint32_t kHeadDims[] = {2, 6, 8, 16, 20, 32, 48, 64, 80, 128};

struct Case {
  tinyqmoe_kv_type type;
  uint32_t kv_heads, queries, head_dim, context, n;
  Floats q, k, v;  // of n tokens

  uint32_t heads() const { return kv_heads * queries; }
  std::string name() const {
    return "attention, type " + std::to_string(type) + ", " + std::to_string(kv_heads) + " x " + std::to_string(queries) +
           " heads of " + std::to_string(head_dim) + ", " + std::to_string(n) + " of " + std::to_string(context);
  }
};

Case make_case(Random& random, int i) {
  Case c;
  c.type = static_cast<tinyqmoe_kv_type>(TINYQMOE_KV_FLOAT16 + i % 3);
  c.kv_heads = between(random, 1, 3);
  c.queries = between(random, 1, 9);
  c.head_dim = kHeadDims[below(random, 10)];
  c.context = i % 9 < 3 ? between(random, 129, 300) : between(random, 1, 70);
  c.n = between(random, 1, c.context);
  c.q = random_floats(random, size_t{c.n} * c.heads() * c.head_dim, 2.0f);
  c.k = random_floats(random, size_t{c.n} * c.kv_heads * c.head_dim, 2.0f);
  c.v = random_floats(random, c.k.size());
  return c;
}

// As the cache keeps it, without the scale of int8, which is put aside.
Floats stored(tinyqmoe_kv_type type, Floats x, Floats* scales) {
  if (type == TINYQMOE_KV_FLOAT16) {
    for (float& e : x) e = tinyqmoe::float_of_half(tinyqmoe::half_of(e));
  } else if (type == TINYQMOE_KV_INT8) {
    float most = 0.0f;
    for (const float e : x) most = std::max(most, std::fabs(e));
    for (float& e : x) e = most < 0x1p-100f ? 0.0f : std::nearbyint(e * (127.0f / most));
    scales->push_back(most < 0x1p-100f ? 0.0f : most / 127.0f);
  }
  return x;
}

Floats expected_output(const Case& c) {
  Floats out(c.q.size());
  const uint32_t d = c.head_dim;
  for (uint32_t g = 0; g < c.kv_heads; ++g) {
    reference::Rows rows;
    for (uint32_t t = 0; t < c.n; ++t) {
      const size_t at = (size_t{t} * c.kv_heads + g) * d;
      rows.keys.push_back(stored(c.type, {c.k.begin() + at, c.k.begin() + at + d}, &rows.key_scales));
      rows.values.push_back(stored(c.type, {c.v.begin() + at, c.v.begin() + at + d}, &rows.value_scales));
      for (uint32_t r = 0; r < c.queries; ++r) {
        const size_t from = (size_t{t} * c.heads() + g * c.queries + r) * d;
        const Floats y = reference::attend({c.q.begin() + from, c.q.begin() + from + d}, rows);
        std::copy(y.begin(), y.end(), out.begin() + from);
      }
    }
  }
  return out;
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};

// Items taken one by one by several threads, each with scratch of exactly the size that was asked for.
void attend_in_threads(const tinyqmoe_attention_args& args, tinyqmoe_isa isa, uint32_t n_threads) {
  const uint64_t items = tinyqmoe_attention_items(&args);
  CHECK(items > 0);
  std::atomic<uint64_t> next{0};
  std::atomic<bool> fine{true};
  std::vector<tinyqmoe::Thread> threads;
  for (uint32_t i = 0; i < n_threads; ++i) {
    threads.emplace_back([&] {
      Floats scratch(tinyqmoe_attention_scratch_bytes(&args) / sizeof(float));
      for (uint64_t item = next++; item < items; item = next++) {
        if (tinyqmoe_attention(&args, item, item + 1, isa, scratch.data()) != TINYQMOE_OK) fine = false;
      }
    });
  }
  for (tinyqmoe::Thread& thread : threads) thread.join();
  CHECK(fine);
}

// One token in steps: the items of each by several threads, which share scratch of exactly the size that was asked for.
void attend_in_steps(const tinyqmoe_attention_args& args, tinyqmoe_isa isa, uint32_t n_threads) {
  Floats shared(tinyqmoe_attention_shared_bytes(&args) / sizeof(float), 1e9f);
  std::atomic<bool> fine{!shared.empty()};
  for (const auto step : {TINYQMOE_ATTENTION_SCORES, TINYQMOE_ATTENTION_WEIGHTS, TINYQMOE_ATTENTION_VALUES}) {
    const uint64_t items = tinyqmoe_attention_step_items(&args, step);
    CHECK(items > 0);
    std::atomic<uint64_t> next{0};
    std::vector<tinyqmoe::Thread> threads;
    for (uint32_t i = 0; i < n_threads; ++i) {
      threads.emplace_back([&] {
        for (uint64_t item = next++; item < items; item = next++) {
          if (tinyqmoe_attention_do_step(&args, step, item, item + 1, isa, shared.data()) != TINYQMOE_OK) fine = false;
        }
      });
    }
    for (tinyqmoe::Thread& thread : threads) thread.join();
  }
  CHECK(fine);
}

// All tokens, in calls of random lengths, and the last one in steps too.
Floats run(const Case& c, tinyqmoe_isa isa, Random& random, uint32_t n_threads) {
  tinyqmoe_kv_cache cache = {nullptr, c.type, c.kv_heads, c.head_dim, c.context};
  const uint64_t bytes = tinyqmoe_kv_cache_bytes(&cache);
  const std::unique_ptr<void, Free> memory(std::aligned_alloc(64, bytes));
  std::memset(memory.get(), 0xFF, bytes);  // NaN: what was never written must not matter
  cache.bytes = memory.get();
  Floats out(c.q.size(), 1e9f);
  for (uint32_t at = 0; at < c.n;) {
    const uint32_t tokens = between(random, 1, c.n - at), split = below(random, c.kv_heads + 1);
    const size_t kv = size_t{at} * c.kv_heads * c.head_dim, q = size_t{at} * c.heads() * c.head_dim;
    const tinyqmoe_kv_write_args write = {c.k.data() + kv, c.v.data() + kv, at, tokens};
    CHECK(tinyqmoe_kv_cache_write(&cache, &write, 0, split) == TINYQMOE_OK);
    CHECK(tinyqmoe_kv_cache_write(&cache, &write, split, c.kv_heads) == TINYQMOE_OK);
    const tinyqmoe_attention_args args = {&cache, c.q.data() + q, out.data() + q, c.heads(), at, tokens};
    attend_in_threads(args, isa, n_threads);
    at += tokens;
  }
  const size_t last = (size_t{c.n} - 1) * c.heads() * c.head_dim;
  Floats in_steps(out.size() - last, 1e9f);
  attend_in_steps({&cache, c.q.data() + last, in_steps.data(), c.heads(), c.n - 1, 1}, isa, n_threads);
  CHECK(same_bits(in_steps, Floats(out.begin() + last, out.end())));
  return out;
}

void test_bad_calls() {
  g_context = "bad calls of attention";
  float x[64] = {};
  tinyqmoe_kv_cache cache = {x, TINYQMOE_KV_FLOAT32, 1, 2, 4};
  for (const tinyqmoe_kv_cache& bad :
       {tinyqmoe_kv_cache{x, TINYQMOE_KV_FLOAT32, 0, 2, 4}, tinyqmoe_kv_cache{x, TINYQMOE_KV_FLOAT32, 1, 0, 4},
        tinyqmoe_kv_cache{x, TINYQMOE_KV_FLOAT32, 1, 1025, 4}, tinyqmoe_kv_cache{x, TINYQMOE_KV_FLOAT32, 1, 2, 0},
        tinyqmoe_kv_cache{x, static_cast<tinyqmoe_kv_type>(0), 1, 2, 4}}) {
    CHECK(tinyqmoe_kv_cache_bytes(&bad) == 0);
  }
  const tinyqmoe_kv_write_args fits = {x, x, 3, 1}, past = {x, x, 3, 2}, far = {x, x, UINT32_MAX, 2};
  CHECK(tinyqmoe_kv_cache_write(&cache, &fits, 0, 2) == TINYQMOE_BAD_ARGUMENT);
  CHECK(tinyqmoe_kv_cache_write(&cache, &past, 0, 1) == TINYQMOE_BAD_ARGUMENT);
  CHECK(tinyqmoe_kv_cache_write(&cache, &far, 0, 1) == TINYQMOE_BAD_ARGUMENT);
  float y[64], scratch[256];
  const tinyqmoe_attention_args args = {&cache, x, y, 3, 0, 4}, late = {&cache, x, y, 3, 1, 4};
  CHECK(tinyqmoe_attention_items(&args) == 4 && tinyqmoe_attention_items(&late) == 0);
  CHECK(tinyqmoe_attention(&args, 0, 5, TINYQMOE_ISA_AUTO, scratch) == TINYQMOE_BAD_ARGUMENT);
  CHECK(tinyqmoe_attention(&args, 0, 1, TINYQMOE_ISA_AUTO, nullptr) == TINYQMOE_BAD_ARGUMENT);
  CHECK(tinyqmoe_attention(&args, 0, 1, static_cast<tinyqmoe_isa>(7), scratch) == TINYQMOE_NO_ISA);
  const tinyqmoe_attention_args one = {&cache, x, y, 3, 3, 1};
  const auto none = static_cast<tinyqmoe_attention_step>(0);
  CHECK(tinyqmoe_attention_step_items(&one, none) == 0);
  CHECK(tinyqmoe_attention_do_step(&one, none, 0, 0, TINYQMOE_ISA_AUTO, scratch) == TINYQMOE_BAD_ARGUMENT);
  CHECK(tinyqmoe_attention_shared_bytes(&args) == 0);
  CHECK(tinyqmoe_attention_step_items(&args, TINYQMOE_ATTENTION_SCORES) == 0);
  const uint64_t items = tinyqmoe_attention_step_items(&one, TINYQMOE_ATTENTION_WEIGHTS);
  CHECK(items == 3);
  const auto do_step = [&](uint64_t begin, uint64_t end, tinyqmoe_isa isa, void* shared) {
    return tinyqmoe_attention_do_step(&one, TINYQMOE_ATTENTION_WEIGHTS, begin, end, isa, shared);
  };
  CHECK(do_step(0, items + 1, TINYQMOE_ISA_AUTO, scratch) == TINYQMOE_BAD_ARGUMENT);
  CHECK(do_step(2, 1, TINYQMOE_ISA_AUTO, scratch) == TINYQMOE_BAD_ARGUMENT);
  CHECK(do_step(0, 1, TINYQMOE_ISA_AUTO, nullptr) == TINYQMOE_BAD_ARGUMENT);
  CHECK(do_step(0, 1, static_cast<tinyqmoe_isa>(7), scratch) == TINYQMOE_NO_ISA);
  cache.kv_heads = 2;
  CHECK(tinyqmoe_attention_items(&args) == 0);  // three heads over two
}

// Steps are for one token that sees many, where threads would have unequal numbers of heads.
void test_when_steps_pay() {
  g_context = "attention in steps";
  const tinyqmoe_kv_cache three = {nullptr, TINYQMOE_KV_FLOAT16, 3, 64, 2048};
  const tinyqmoe_kv_cache eight = {nullptr, TINYQMOE_KV_FLOAT16, 8, 64, 2048};
  const auto pays = [](const tinyqmoe_kv_cache& cache, uint32_t position, uint32_t n_tokens, uint32_t n_threads) {
    const tinyqmoe_attention_args args = {&cache, nullptr, nullptr, 3 * cache.kv_heads, position, n_tokens};
    return tinyqmoe_attention_in_steps(&args, n_threads);
  };
  CHECK(pays(three, 512, 1, 2) && pays(three, 2047, 1, 4) && pays(eight, 600, 1, 6));
  CHECK(!pays(three, 511, 1, 2) && !pays(three, 512, 2, 2) && !pays(three, 512, 1, 1) && !pays(three, 512, 1, 3));
  CHECK(!pays(eight, 512, 1, 4) && !pays(three, 2048, 1, 2));
}

}  // namespace

void test_attention() {
  Random random(3), calls(14);  // two, so that the cases do not depend on how many instruction sets there are
  for (int i = 0; i < 60; ++i) {
    const Case c = make_case(random, i);
    const Floats expected = expected_output(c);
    digest(expected);
    for (const tinyqmoe_isa isa : llm_isas()) {
      const uint32_t n_threads = between(calls, 1, 5);
      g_context = c.name() + ", instruction set " + std::to_string(isa);
      CHECK(same_bits(run(c, isa, calls, n_threads), expected));
    }
  }
  test_bad_calls();
  test_when_steps_pay();
}

}  // namespace tests
