// Expanded copies in files, mapped read-only: pages that the system may drop and read again.
#ifndef TINYQMOE_CORE_CACHE_FILE_H_
#define TINYQMOE_CORE_CACHE_FILE_H_

#include <cstddef>
#include <cstdint>

#include "expand.h"
#include "tensor.h"

namespace tinyqmoe {

constexpr size_t kMaxFolder = 1024;
constexpr size_t kMaxPath = kMaxFolder + 64;

// The file of a tensor's copy: "DIR/tqlz-ROWSxCOLS-TABLES-PAYLOAD-HEADER.raw", the last three the CRCs of its header.
void cache_path(const char* dir, const tinyqmoe_tensor& coded, char path[kMaxPath]);

struct MappedCopy {
  uint8_t* bytes;
  uint64_t n_bytes;
  tinyqmoe_tensor* tensor;
};

enum class FileResult {
  kMapped,
  kBusy,    // another process writes it now
  kFailed,  // it cannot be written, or not read again
  kBadBlob,
  kNoRoom,  // for the exceptions of clipped levels
};

// Opens and checks the file of a copy in this form; writes it first if it is missing, damaged, of another tensor or of
// another form.
FileResult open_cached(const tinyqmoe_tensor& coded, Form form, const tinyqmoe_threads* threads, const char* path,
                       MappedCopy* copy, bool* wrote);

}  // namespace tinyqmoe
#endif  // TINYQMOE_CORE_CACHE_FILE_H_
