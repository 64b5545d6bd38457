// Loops whose pieces are shared by threads: those of a pool of ours, or of a host's.
#ifndef TINYQMOE_LLM_LOOPS_H_
#define TINYQMOE_LLM_LOOPS_H_

#include <atomic>
#include <cstdint>

#include "tinyqmoe/tinyqmoe.h"

namespace tinyqmoe {

class Loops {
 public:
  Loops() = default;
  virtual ~Loops() = default;
  Loops(const Loops&) = delete;
  Loops& operator=(const Loops&) = delete;

  virtual uint32_t n_threads() const = 0;

  // body(begin, end, thread) over [0, n) in pieces of `grain`, thread below n_threads(). Returns when all are done.
  // For one caller at a time; a body starts no loop.
  template <typename Body>
  void run(uint64_t n, uint64_t grain, const Body& body) {
    const auto call = [](const void* context, uint64_t begin, uint64_t end, uint32_t thread) {
      (*static_cast<const Body*>(context))(begin, end, thread);
    };
    run_loop({call, &body, n, grain});
  }

  // These threads for what the core makes.
  tinyqmoe_threads threads() {
    const auto run_parts = [](void* host, uint64_t n, void (*work)(void* context, uint64_t part), void* context) {
      static_cast<Loops*>(host)->run(n, 1, [&](uint64_t begin, uint64_t end, uint32_t) {
        for (uint64_t i = begin; i < end; ++i) work(context, i);
      });
    };
    return {this, run_parts};
  }

 protected:
  struct Loop {
    void (*call)(const void* context, uint64_t begin, uint64_t end, uint32_t thread);
    const void* context;
    uint64_t n;
    uint64_t grain;
  };

  virtual void run_loop(const Loop& loop) = 0;
};

// The first failure among the threads of a loop.
class Failure {
 public:
  void note(tinyqmoe_status status) {
    int none = TINYQMOE_OK;
    if (status != TINYQMOE_OK) status_.compare_exchange_strong(none, status);
  }
  tinyqmoe_status status() const { return static_cast<tinyqmoe_status>(status_.load()); }

 private:
  std::atomic<int> status_{TINYQMOE_OK};
};

}  // namespace tinyqmoe
#endif  // TINYQMOE_LLM_LOOPS_H_
