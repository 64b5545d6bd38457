// What the operators share: errors, scratch memory that is kept, work for ExecuTorch's threads.
#ifndef TINYQMOE_EXECUTORCH_COMMON_H_
#define TINYQMOE_EXECUTORCH_COMMON_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include <executorch/runtime/kernel/kernel_includes.h>
#include <executorch/runtime/kernel/thread_parallel_interface.h>

#include "loops.h"
#include "tinyqmoe/tinyqmoe.h"

namespace tinyqmoe_executorch {

using executorch::aten::ScalarType;
using executorch::aten::SizesType;
using executorch::aten::Tensor;
using executorch::runtime::Error;
using executorch::runtime::KernelRuntimeContext;

struct FreeBytes {
  void operator()(void* p) const { std::free(p); }
};

// Memory that a thread keeps between calls, which follow each other and need the same.
class Kept {
 public:
  // 64-byte aligned; null when there is none. What was there before is gone.
  void* at_least(uint64_t bytes) {
    if (bytes > capacity_ || memory_ == nullptr) {
      const uint64_t rounded = (std::max<uint64_t>(bytes, 1) + 63) / 64 * 64;
      memory_.reset();
      memory_.reset(std::aligned_alloc(64, rounded));
      capacity_ = memory_ ? rounded : 0;
    }
    return memory_.get();
  }

 private:
  std::unique_ptr<void, FreeBytes> memory_;
  uint64_t capacity_ = 0;
};

inline Error error_of(tinyqmoe_status status) {
  if (status == TINYQMOE_OUT_OF_MEMORY) return Error::MemoryAllocationFailed;
  return status >= TINYQMOE_BAD_ARGUMENT ? Error::InvalidArgument : Error::InvalidProgram;
}

// Why an operator of this thread failed, which an Error cannot say.
inline tinyqmoe_status& last_failure() {
  thread_local tinyqmoe_status status = TINYQMOE_OK;
  return status;
}

// Fails the program, unless the status is OK.
inline void finish(KernelRuntimeContext& context, const char* op, tinyqmoe_status status) {
  if (status == TINYQMOE_OK) return;
  ET_LOG(Error, "tinyqmoe::%s: %s", op, tinyqmoe_status_name(status));
  last_failure() = status;
  context.fail(error_of(status));
}

inline bool is_contiguous_float(const Tensor& t) {
  return t.scalar_type() == ScalarType::Float && executorch::runtime::tensor_is_default_dim_order(t);
}

inline int64_t last_size(const Tensor& t) { return t.dim() == 0 ? 0 : t.size(t.dim() - 1); }

// ExecuTorch's threads.
class HostLoops : public tinyqmoe::Loops {
 public:
  uint32_t n_threads() const override { return static_cast<uint32_t>(executorch::extension::get_thread_count()); }

 protected:
  // A thread takes a piece when it has finished the one before, so that slow and busy cores finish with the others.
  void run_loop(const Loop& loop) override {
    const uint64_t n_pieces = (loop.n + loop.grain - 1) / loop.grain;
    std::atomic<uint64_t> next{0};
    const auto work = [&](int64_t first_thread, int64_t) {
      for (uint64_t i = next++; i < n_pieces; i = next++) {
        const uint64_t end = std::min(loop.n, (i + 1) * loop.grain);
        loop.call(loop.context, i * loop.grain, end, static_cast<uint32_t>(first_thread));
      }
    };
    const auto n = static_cast<int64_t>(std::min<uint64_t>(n_threads(), n_pieces));
    if (n <= 1 || !executorch::extension::parallel_for(0, n, 1, work)) work(0, 1);
  }
};

// Calls work(begin, end), which returns a status, on pieces of `piece` items of [0, n), the last one shorter. Returns one
// status that is no success, if there is one.
template <typename Work>
tinyqmoe_status share(int64_t n, int64_t piece, const Work& work) {
  HostLoops loops;
  tinyqmoe::Failure failure;
  const auto body = [&](uint64_t begin, uint64_t end, uint32_t) {
    failure.note(work(static_cast<int64_t>(begin), static_cast<int64_t>(end)));
  };
  loops.run(static_cast<uint64_t>(std::max<int64_t>(0, n)), static_cast<uint64_t>(std::max<int64_t>(1, piece)), body);
  return failure.status();
}

// out takes the leading sizes of `like` (without its last n_dropped) and `last` behind them.
inline bool resize_like(const Tensor& like, ssize_t n_dropped, int64_t last, Tensor& out) {
  constexpr ssize_t kMaxDim = 8;
  SizesType sizes[kMaxDim];
  const ssize_t lead = static_cast<ssize_t>(like.dim()) - n_dropped;
  if (lead < 0 || lead + 1 > kMaxDim) return false;
  for (ssize_t i = 0; i < lead; ++i) sizes[i] = static_cast<SizesType>(like.size(i));
  sizes[lead] = static_cast<SizesType>(last);
  return executorch::runtime::resize_tensor(out, {sizes, static_cast<size_t>(lead + 1)}) == Error::Ok;
}

}  // namespace tinyqmoe_executorch
#endif  // TINYQMOE_EXECUTORCH_COMMON_H_
