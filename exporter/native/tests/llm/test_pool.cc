// The pool: each part of a loop runs once, threads are told apart, and loops follow each other at once or after a
// pause.
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

}  // namespace

void test_pool() {
  Random random(5);
  for (uint32_t n_threads = 0; n_threads <= std::min(5u, tinyqmoe::kMaxThreads); ++n_threads) {
    g_context = "pool of " + std::to_string(n_threads);
    tinyqmoe::Pool pool(n_threads);
    CHECK(pool.n_threads() == (n_threads == 0 ? 1 : n_threads));
    test_loops(pool, random, 1000);
  }
  g_context = "failure";
  tinyqmoe::Failure failure;
  failure.note(TINYQMOE_OK);
  CHECK(failure.status() == TINYQMOE_OK);
  failure.note(TINYQMOE_BAD_ID);
  failure.note(TINYQMOE_NON_FINITE);
  CHECK(failure.status() == TINYQMOE_BAD_ID);
}

}  // namespace tests
