// The pool: each part of a loop runs once, threads are told apart and begin with their own shares, and loops follow each
// other at once or after a pause.
#include <unistd.h>

#include <algorithm>

#include "pool.h"
#include "support.h"

namespace tests {
namespace {

void test_loops(tinyqmoe::Pool& pool, Random& random, int loops) {
  for (int i = 0; i < loops; ++i) {
    const uint64_t n = below(random, 200), grain = between(random, 1, 20);
    std::vector<uint32_t> seen(n, 0);
    std::vector<std::atomic<uint32_t>> inside(pool.n_threads());
    std::atomic<bool> fine{true};
    pool.run(n, grain, [&](uint64_t begin, uint64_t end, uint32_t thread) {
      if (thread >= pool.n_threads() || end <= begin || inside[thread].fetch_add(1) != 0) fine = false;
      for (uint64_t k = begin; k < end; ++k) ++seen[k];
      inside[thread].fetch_sub(1);
    });
    CHECK(fine);
    CHECK(seen == std::vector<uint32_t>(n, 1));
    if (i % 100 == 0) usleep(300);  // long enough to fall asleep
  }
}

// A thread takes its share in order, and then nothing but what others have left. Pieces take so long that all join in.
void test_shares() {
  constexpr uint64_t kGrain = 5, kShare = 6 * kGrain;
  constexpr uint32_t kLoops = 20;
  tinyqmoe::Pool pool(std::min(4u, tinyqmoe::kMaxThreads));
  uint32_t own_first = 0;
  for (uint32_t i = 0; i < kLoops; ++i) {
    std::vector<std::vector<uint64_t>> begins(pool.n_threads());
    pool.run(kShare * pool.n_threads(), kGrain, [&](uint64_t begin, uint64_t, uint32_t thread) {
      begins[thread].push_back(begin);
      usleep(200);
    });
    for (uint32_t t = 0; t < pool.n_threads(); ++t) {
      const auto is_own = [t](uint64_t begin) { return begin / kShare == t; };
      const auto rest = std::find_if_not(begins[t].begin(), begins[t].end(), is_own);
      CHECK(std::is_sorted(begins[t].begin(), rest) && std::none_of(rest, begins[t].end(), is_own));
      own_first += !begins[t].empty() && begins[t][0] == t * kShare;
    }
  }
  CHECK(pool.n_threads() == 1 || own_first > kLoops);  // the caller, and at times another
}

}  // namespace

void test_pool() {
  Random random(5);
  for (uint32_t n_threads = 0; n_threads <= std::min(5u, tinyqmoe::kMaxThreads); ++n_threads) {
    g_context = "pool of " + std::to_string(n_threads);
    tinyqmoe::Pool pool(n_threads);
    CHECK(pool.n_threads() == (n_threads == 0 ? 1 : n_threads));
    test_loops(pool, random, 1000);
  }
  g_context = "shares";
  test_shares();
  g_context = "failure";
  tinyqmoe::Failure failure;
  failure.note(TINYQMOE_OK);
  CHECK(failure.status() == TINYQMOE_OK);
  failure.note(TINYQMOE_BAD_ID);
  failure.note(TINYQMOE_NON_FINITE);
  CHECK(failure.status() == TINYQMOE_BAD_ID);
}

}  // namespace tests
