// A few threads that share the parts of one loop.
#ifndef TINYQMOE_LLM_POOL_H_
#define TINYQMOE_LLM_POOL_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "threads.h"
#include "tinyqmoe/tinyqmoe.h"

namespace tinyqmoe {

// Each thread has a share of a loop, pieces that lie next to each other: what it reads is mostly in the order of memory.
// It takes its own first, and then what others have left. So a slow core takes fewer of them, and a thread that wakes up
// late takes none: the caller never waits for it. Threads spin for some microseconds between loops and then sleep.
class Pool {
 public:
  // As many threads as the system gives, at most n_threads with the caller, at least the caller.
  explicit Pool(uint32_t n_threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  uint32_t n_threads() const { return static_cast<uint32_t>(workers_.size()) + 1; }

  // body(begin, end, thread) over [0, n) in pieces of `grain`, thread below n_threads(). Returns when all are done.
  // For one caller at a time; a body starts no loop.
  template <typename Body>
  void run(uint64_t n, uint64_t grain, const Body& body) {
    const auto call = [](const void* context, uint64_t begin, uint64_t end, uint32_t thread) {
      (*static_cast<const Body*>(context))(begin, end, thread);
    };
    run_loop({call, &body, n, grain});
  }

 private:
  struct Loop {
    void (*call)(const void* context, uint64_t begin, uint64_t end, uint32_t thread);
    const void* context;
    uint64_t n;
    uint64_t grain;

    // Where the share of a thread begins, and that of the one before ends.
    uint64_t share(uint32_t thread, uint32_t n_threads) const {
      const uint64_t pieces = (n + grain - 1) / grain;
      return std::min(n, pieces * thread / n_threads * grain);
    }
  };

  // How far a share has been taken. A cache line of its own: all threads write to theirs at once.
  struct alignas(64) Taken {
    std::atomic<uint64_t> end{0};
  };

  void run_loop(const Loop& loop);
  void work(uint32_t thread);
  void serve(uint32_t thread);
  bool join(uint64_t* last_loop);
  void leave();

  Loop loop_ = {};
  std::unique_ptr<Taken[]> taken_;  // one a thread
  // Which loop it is (upper bits), whether threads may still join it (kOpen), and how many are in it (lowest bits).
  std::atomic<uint64_t> state_{0};
  std::atomic<uint32_t> sleepers_{0};  // workers, and the caller when it waits for the last of them
  std::atomic<bool> stop_{false};
  Mutex mutex_;
  Condition wake_;
  std::vector<Thread> workers_;
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
#endif  // TINYQMOE_LLM_POOL_H_
