// The coded tensors that the operators have opened, kept as long as the program that they belong to.
#ifndef TINYQMOE_EXECUTORCH_OPEN_TENSORS_H_
#define TINYQMOE_EXECUTORCH_OPEN_TENSORS_H_

#include <memory>
#include <mutex>
#include <unordered_map>

#include "common.h"

namespace tinyqmoe_executorch {

constexpr uint32_t kHeaderBytes = 64;  // of a blob

// Opening checks a blob and expands its dictionary, so it is done once. The tensors borrow the program's bytes: this goes
// before them.
class OpenTensors {
 public:
  // bytes_may_change: another blob may come to be where one was. The same header is the same tensor then, as it holds CRCs
  // of all that follows. To look at it costs two misses of caches, as nothing else reads there once a matrix is expanded.
  explicit OpenTensors(bool bytes_may_change) : bytes_may_change_(bytes_may_change) {}

  tinyqmoe_status find(const Tensor& blob, std::shared_ptr<tinyqmoe_tensor>* out);

 private:
  struct Entry {
    uint64_t n_bytes;
    std::shared_ptr<tinyqmoe_tensor> tensor;
    uint8_t header[kHeaderBytes];
  };
  bool is_of(const Entry& entry, const void* bytes, uint64_t n_bytes) const;

  const bool bytes_may_change_;
  std::mutex mutex_;
  std::unordered_map<const void*, Entry> by_address_;
};

// Those of the program that this thread runs, as tinyqmoe_program_tensors_use named them. Else those of all programs
// that nobody named: they stay, for nobody says when such a program ends.
OpenTensors& tensors_in_use();

}  // namespace tinyqmoe_executorch

// For a host that calls ExecuTorch itself; a session does this on its own. Name the tensors of a program in the thread
// that calls it, before the call, and free them before the program. Its blobs are constants, as the exporter makes them.
extern "C" {
TINYQMOE_API tinyqmoe_executorch::OpenTensors* tinyqmoe_program_tensors_new(void);  // null: no memory
// Null: those of all programs that nobody named.
TINYQMOE_API void tinyqmoe_program_tensors_use(tinyqmoe_executorch::OpenTensors* tensors);
TINYQMOE_API void tinyqmoe_program_tensors_free(tinyqmoe_executorch::OpenTensors* tensors);  // null is fine
}

#endif  // TINYQMOE_EXECUTORCH_OPEN_TENSORS_H_
