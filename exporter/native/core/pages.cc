// Of a system with virtual memory; system_wasm.cc is the other one.
#if !defined(__wasm__)

#include "pages.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "bytes.h"

namespace tinyqmoe {
namespace {

#if defined(__linux__) && !defined(MADV_PAGEOUT)
#define MADV_PAGEOUT 21  // Linux 5.4, which old headers lack; an older kernel refuses it, which does no harm
#endif

// Linux reads no more than its read-ahead window at one request, however long the range; its default is this.
constexpr uint64_t kRequestBytes = 128 << 10;

// Of a large page, which lies on a multiple of that: memory that begins elsewhere has one less, and small ones instead.
constexpr uint64_t kLargePageBytes = 2 << 20;

}  // namespace

uint64_t page_bytes() {
  static const uint64_t bytes = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

uint8_t* map_memory(uint64_t bytes) {
  const uint64_t whole = round_up(bytes, page_bytes());
  const uint64_t slack = bytes < kLargePageBytes ? 0 : kLargePageBytes;
  void* const memory = mmap(nullptr, whole + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  uint8_t* const mapped = static_cast<uint8_t*>(memory);
  const uintptr_t at = reinterpret_cast<uintptr_t>(mapped);
  const uint64_t before = slack == 0 ? 0 : round_up(at, slack) - at;
  uint8_t* const begin = mapped + before;
  if (before > 0) munmap(mapped, before);
  if (slack > before) munmap(begin + whole, slack - before);
#if defined(__linux__)
  madvise(begin, whole, MADV_HUGEPAGE);  // fewer faults while it is filled, fewer misses while it is read
#endif
  return begin;
}

void unmap(uint8_t* memory, uint64_t bytes) { munmap(memory, bytes); }

uint8_t* map_file(const char* path, uint64_t* bytes) {
  const int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);  // a pipe's would wait for a writer
  if (fd < 0) return nullptr;
  struct stat status;
  void* mapped = MAP_FAILED;
  if (fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && status.st_size > 0) {
    *bytes = static_cast<uint64_t>(status.st_size);
    mapped = mmap(nullptr, *bytes, PROT_READ, MAP_PRIVATE, fd, 0);
  }
  close(fd);
  return mapped == MAP_FAILED ? nullptr : static_cast<uint8_t*>(mapped);
}

bool write_at(int file, const void* bytes, uint64_t n, uint64_t offset) {
  const uint8_t* p = static_cast<const uint8_t*>(bytes);
  while (n > 0) {
    const ssize_t done = pwrite(file, p, n, static_cast<off_t>(offset));
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) return false;
    p += done;
    n -= static_cast<uint64_t>(done);
    offset += static_cast<uint64_t>(done);
  }
  return true;
}

void prefetch(const PageRange& range) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(range.begin) / page_bytes() * page_bytes();
  const uintptr_t end = reinterpret_cast<uintptr_t>(range.begin) + range.bytes;
  for (uintptr_t at = begin; at < end; at += kRequestBytes) {
    posix_madvise(reinterpret_cast<void*>(at), std::min<uint64_t>(kRequestBytes, end - at), POSIX_MADV_WILLNEED);
  }
}

void evict(const PageRange& range) {
  const uintptr_t begin = round_up(reinterpret_cast<uintptr_t>(range.begin), page_bytes());
  const uintptr_t end = (reinterpret_cast<uintptr_t>(range.begin) + range.bytes) / page_bytes() * page_bytes();
  if (begin >= end) return;
  void* const first = reinterpret_cast<void*>(begin);
#if defined(__linux__)
  madvise(first, end - begin, MADV_PAGEOUT);  // MADV_DONTNEED would zero memory that is no file
#else
  posix_madvise(first, end - begin, POSIX_MADV_DONTNEED);  // keeps the content, other than Linux's own
#endif
}

}  // namespace tinyqmoe

#endif  // !defined(__wasm__)
