#include "open_tensors.h"

#include <cstring>
#include <new>

namespace tinyqmoe_executorch {
namespace {

struct CloseTensor {
  void operator()(tinyqmoe_tensor* t) const { tinyqmoe_close(t); }
};

thread_local OpenTensors* g_named = nullptr;

}  // namespace

bool OpenTensors::is_of(const Entry& entry, const void* bytes, uint64_t n_bytes) const {
  if (entry.tensor == nullptr || entry.n_bytes != n_bytes) return false;
  return !bytes_may_change_ || std::memcmp(entry.header, bytes, kHeaderBytes) == 0;
}

tinyqmoe_status OpenTensors::find(const Tensor& blob, std::shared_ptr<tinyqmoe_tensor>* out) {
  const void* const bytes = blob.const_data_ptr();
  const uint64_t n_bytes = static_cast<uint64_t>(blob.nbytes());
  if (n_bytes < kHeaderBytes) return TINYQMOE_TRUNCATED;
  const std::lock_guard<std::mutex> lock(mutex_);
  Entry& entry = by_address_[bytes];
  if (!is_of(entry, bytes, n_bytes)) {
    tinyqmoe_tensor* opened = nullptr;
    const tinyqmoe_status status = tinyqmoe_open(bytes, n_bytes, 0, &opened);
    if (status != TINYQMOE_OK) return status;
    entry.tensor = std::shared_ptr<tinyqmoe_tensor>(opened, CloseTensor());
    entry.n_bytes = n_bytes;
    std::memcpy(entry.header, bytes, kHeaderBytes);
  }
  *out = entry.tensor;
  return TINYQMOE_OK;
}

OpenTensors& tensors_in_use() {
  static auto* const unnamed = new OpenTensors(true);  // outlives static destructors, as core/no_destroy.h says why
  return g_named == nullptr ? *unnamed : *g_named;
}

}  // namespace tinyqmoe_executorch

extern "C" {

tinyqmoe_executorch::OpenTensors* tinyqmoe_program_tensors_new(void) {
  return new (std::nothrow) tinyqmoe_executorch::OpenTensors(false);
}

void tinyqmoe_program_tensors_use(tinyqmoe_executorch::OpenTensors* tensors) { tinyqmoe_executorch::g_named = tensors; }

void tinyqmoe_program_tensors_free(tinyqmoe_executorch::OpenTensors* tensors) { delete tensors; }

}  // extern "C"
