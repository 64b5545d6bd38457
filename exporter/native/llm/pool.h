// A few threads that share the parts of one loop.
#ifndef TINYQMOE_LLM_POOL_H_
#define TINYQMOE_LLM_POOL_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "loops.h"
#include "threads.h"

namespace tinyqmoe {

// Each thread has a share of a loop, pieces that lie next to each other: what it reads is mostly in the order of memory.
// It takes its own first, and then what others have left. So a slow core takes fewer of them, and a thread that wakes up
// late takes none: the caller never waits for it. Threads spin for some microseconds between loops and then sleep.
class Pool : public Loops {
 public:
  // As many threads as the system gives, at most n_threads with the caller, at least the caller.
  explicit Pool(uint32_t n_threads);
  ~Pool() override;

  uint32_t n_threads() const override { return static_cast<uint32_t>(workers_.size()) + 1; }

 private:
  // How far a share has been taken. A cache line of its own: all threads write to theirs at once.
  struct alignas(64) Taken {
    std::atomic<uint64_t> end{0};
  };

  void run_loop(const Loop& loop) override;
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

}  // namespace tinyqmoe
#endif  // TINYQMOE_LLM_POOL_H_
