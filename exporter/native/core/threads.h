// Threads and locks of the system. WebAssembly has none without shared memory: there the same names do nothing, and
// kMaxThreads leaves a pool its caller alone.
#ifndef TINYQMOE_CORE_THREADS_H_
#define TINYQMOE_CORE_THREADS_H_

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

namespace tinyqmoe {

#if defined(__wasm__)

constexpr uint32_t kMaxThreads = 1;

struct Mutex {
  void lock() {}
  void unlock() {}
};

struct Lock {
  explicit Lock(Mutex&) {}
};

struct Condition {
  void notify_all() {}
  template <typename Predicate>
  void wait(Lock&, const Predicate&) {}
};

// Has done its work before its constructor returns.
struct Thread {
  template <typename Work>
  explicit Thread(const Work& work) { work(); }
  void join() {}
};

inline uint32_t machine_threads() { return 1; }

#else

constexpr uint32_t kMaxThreads = 256;

using Mutex = std::mutex;
using Lock = std::unique_lock<std::mutex>;
using Condition = std::condition_variable;
using Thread = std::thread;

inline uint32_t machine_threads() { return std::thread::hardware_concurrency(); }

#endif

}  // namespace tinyqmoe
#endif  // TINYQMOE_CORE_THREADS_H_
