#include "pool.h"

#include <algorithm>
#include <chrono>
#include <system_error>

namespace tinyqmoe {
namespace {

constexpr uint64_t kOpen = uint64_t{1} << 16;
constexpr uint64_t kInside = kOpen - 1;
constexpr uint64_t kLoop = kOpen << 1;
constexpr uint64_t kLoopBits = ~(kLoop - 1);

// About as long as the short work between two loops of a layer. Longer would heat a phone for nothing.
constexpr std::chrono::microseconds kSpin{20};

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

template <typename Condition>
bool spin_until(const Condition& condition) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; ++i) {
      if (condition()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

// Where the share of a thread begins, and that of the one before ends, of n in pieces of `grain`.
uint64_t share(uint64_t n, uint64_t grain, uint32_t thread, uint32_t n_threads) {
  const uint64_t pieces = (n + grain - 1) / grain;
  return std::min(n, pieces * thread / n_threads * grain);
}

}  // namespace

Pool::Pool(uint32_t n_threads) {
  const uint32_t wanted = std::max(std::min(n_threads, kMaxThreads), 1u);
  taken_ = std::make_unique<Taken[]>(wanted);
  try {
    for (uint32_t i = 1; i < wanted; ++i) workers_.emplace_back([this, i] { serve(i); });
  } catch (const std::system_error&) {  // the system has no more threads: fewer do the same work
  }
}

Pool::~Pool() {
  {
    const std::lock_guard<Mutex> lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (Thread& worker : workers_) worker.join();
}

void Pool::run_loop(const Loop& loop) {
  if (workers_.empty() || loop.n <= loop.grain) {
    if (loop.n > 0) loop.call(loop.context, 0, loop.n, 0);
    return;
  }
  loop_ = loop;
  for (uint32_t t = 0; t < n_threads(); ++t) {
    taken_[t].end.store(share(loop.n, loop.grain, t, n_threads()), std::memory_order_relaxed);
  }
  state_ = (state_.load() & kLoopBits) + kLoop + kOpen;
  // A worker counts itself as a sleeper before it looks at the state for the last time, so none is missed.
  if (sleepers_ > 0) {
    { const std::lock_guard<Mutex> lock(mutex_); }
    wake_.notify_all();
  }
  work(0);
  state_ &= ~kOpen;
  const auto alone = [this] { return (state_ & kInside) == 0; };
  if (spin_until(alone)) return;
  Lock lock(mutex_);
  ++sleepers_;
  wake_.wait(lock, alone);
  --sleepers_;
}

void Pool::work(uint32_t thread) {
  const Loop loop = loop_;
  const uint32_t n = n_threads();
  for (uint32_t k = 0; k < n; ++k) {
    const uint32_t whose = (thread + k) % n;
    const uint64_t end = share(loop.n, loop.grain, whose + 1, n);
    for (;;) {
      const uint64_t begin = taken_[whose].end.fetch_add(loop.grain, std::memory_order_relaxed);
      if (begin >= end) break;
      loop.call(loop.context, begin, std::min(end, begin + loop.grain), thread);
    }
  }
}

// Joins an open loop that is not *last_loop.
bool Pool::join(uint64_t* last_loop) {
  uint64_t state = state_;
  while ((state & kOpen) != 0 && (state & kLoopBits) != *last_loop) {
    if (!state_.compare_exchange_weak(state, state + 1)) continue;
    *last_loop = state & kLoopBits;
    return true;
  }
  return false;
}

void Pool::leave() {
  const uint64_t before = state_.fetch_sub(1);
  if ((before & kInside) != 1 || (before & kOpen) != 0 || sleepers_ == 0) return;
  { const std::lock_guard<Mutex> lock(mutex_); }
  wake_.notify_all();
}

void Pool::serve(uint32_t thread) {
  uint64_t last_loop = 0;
  bool joined = false;
  const auto ready = [&] { return stop_ || (joined = join(&last_loop)); };
  for (;;) {
    joined = false;
    if (!spin_until(ready)) {
      Lock lock(mutex_);
      ++sleepers_;
      wake_.wait(lock, ready);
      --sleepers_;
    }
    if (!joined) return;
    work(thread);
    leave();
  }
}

}  // namespace tinyqmoe
