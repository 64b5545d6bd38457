// WebAssembly (WASI): memory that only grows, files that are read into it, and no exceptions.
#if defined(__wasm__)

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "cache_file.h"
#include "pages.h"

namespace tinyqmoe {
namespace {

constexpr uint64_t kPageBytes = 64 << 10;
constexpr uint64_t kMaxBytes = PTRDIFF_MAX;  // of one object
constexpr uint64_t kRequestBytes = 1 << 30;  // of one read

uint8_t* take(uint64_t bytes) {
  return bytes > kMaxBytes ? nullptr : static_cast<uint8_t*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
}

bool read_all(int fd, uint8_t* to, uint64_t bytes) {
  while (bytes > 0) {
    const ssize_t n = read(fd, to, bytes < kRequestBytes ? bytes : kRequestBytes);
    if (n <= 0) return false;
    to += n;
    bytes -= static_cast<uint64_t>(n);
  }
  return true;
}

}  // namespace

uint64_t page_bytes() { return kPageBytes; }

uint8_t* map_memory(uint64_t bytes) {
  uint8_t* const memory = take(bytes);
  if (memory != nullptr) std::memset(memory, 0, bytes);
  return memory;
}

void unmap(uint8_t* memory, uint64_t) { std::free(memory); }

uint8_t* map_file(const char* path, uint64_t* bytes) {
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return nullptr;
  struct stat status;
  uint8_t* memory = nullptr;
  if (fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && status.st_size > 0) {
    *bytes = static_cast<uint64_t>(status.st_size);
    memory = take(*bytes);
    if (memory != nullptr && !read_all(fd, memory, *bytes)) {
      std::free(memory);
      memory = nullptr;
    }
  }
  close(fd);
  return memory;
}

// Nothing lies in a file.
bool write_at(int, const void*, uint64_t, uint64_t) { return false; }
void prefetch(const PageRange&) {}
void evict(const PageRange&) {}

// tinyqmoe_set_cache_dir takes no folder here, so no copy is looked for.
void cache_path(const char*, const tinyqmoe_tensor&, char path[kMaxPath]) { path[0] = '\0'; }
FileResult open_cached(const tinyqmoe_tensor&, Form, const tinyqmoe_threads*, const char*, MappedCopy*, bool*) {
  return FileResult::kFailed;
}

}  // namespace tinyqmoe

// The C++ library of WASI cannot throw: out of memory ends the module with a trap, which its host can catch.
extern "C" void* __cxa_allocate_exception(size_t) { std::abort(); }
extern "C" void __cxa_throw(void*, void*, void (*)(void*)) { std::abort(); }

#endif  // defined(__wasm__)
