// A file is the blob of the form and, behind it, the header of the tensor that it was made from: a reader of blobs ignores
// that, and here it tells the file from that of another tensor.
#if !defined(__wasm__)

#include "cache_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cinttypes>
#include <cstdio>

#include "bytes.h"
#include "pages.h"

namespace tinyqmoe {
namespace {

struct File {
  int fd;

  ~File() {
    if (fd >= 0) close(fd);
  }
};

bool is_copy_of(const tinyqmoe_tensor& coded, Form form, const tinyqmoe_tensor& copy) {
  const tinyqmoe_info& a = coded.info;
  const tinyqmoe_info& b = copy.info;
  const bool same_form =
      form == Form::kRaw ? b.codec == kRaw : b.codec == kClipped && b.code_bits == clipped_bits(form);
  return same_form && a.rows == b.rows && a.cols == b.cols && a.level_min == b.level_min && a.n_levels == b.n_levels &&
         b.total_bytes == form_bytes(a, form) &&
         std::memcmp(copy.bytes + b.total_bytes, coded.header, kHeaderBytes) == 0;
}

bool map_copy(const tinyqmoe_tensor& coded, Form form, const char* path, MappedCopy* copy) {
  const File file{open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC)};  // a pipe's would wait for a writer
  struct stat status;
  const uint64_t n_bytes = form_bytes(coded.info, form) + kHeaderBytes;
  if (file.fd < 0 || fstat(file.fd, &status) != 0 || static_cast<uint64_t>(status.st_size) != n_bytes) return false;
  void* const mapped = mmap(nullptr, n_bytes, PROT_READ, MAP_PRIVATE, file.fd, 0);
  if (mapped == MAP_FAILED) return false;
  *copy = {static_cast<uint8_t*>(mapped), n_bytes, nullptr};
  const tinyqmoe_status opened = open_copy(mapped, n_bytes, TINYQMOE_VERIFY_PAYLOAD, &copy->tensor);
  if (opened == TINYQMOE_OK && is_copy_of(coded, form, *copy->tensor)) return true;
  tinyqmoe_close(copy->tensor);
  unmap(copy->bytes, n_bytes);
  return false;
}

bool is_at(const File& file, const char* path) {
  struct stat held;
  struct stat there;
  return fstat(file.fd, &held) == 0 && stat(path, &there) == 0 && held.st_dev == there.st_dev &&
         held.st_ino == there.st_ino;
}

FileResult fill(const tinyqmoe_tensor& coded, Form form, const tinyqmoe_threads* threads, const File& file) {
  bool written = ftruncate(file.fd, 0) == 0;
  if (!written) return FileResult::kFailed;
  const tinyqmoe_status status = expand_to_file(coded, form, threads, file.fd, &written);
  if (status != TINYQMOE_OK) return status == TINYQMOE_BUFFER_TOO_SMALL ? FileResult::kNoRoom : FileResult::kBadBlob;
  written = written && write_at(file.fd, coded.header, kHeaderBytes, form_bytes(coded.info, form));
  return written && fsync(file.fd) == 0 ? FileResult::kMapped : FileResult::kFailed;
}

// One temporary name a copy, locked by who writes it: what a process left that was killed is overwritten by the next.
FileResult write_copy(const tinyqmoe_tensor& coded, Form form, const tinyqmoe_threads* threads, const char* path) {
  char temporary[kMaxPath + 4];
  std::snprintf(temporary, sizeof temporary, "%s.tmp", path);
  const File file{open(temporary, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600)};
  if (file.fd < 0) return FileResult::kFailed;
  if (flock(file.fd, LOCK_EX | LOCK_NB) != 0) return errno == EWOULDBLOCK ? FileResult::kBusy : FileResult::kFailed;
  // Who held the lock before may have renamed the file, and it is in use: not a byte of it may change.
  if (!is_at(file, temporary)) return FileResult::kBusy;
  FileResult result = fill(coded, form, threads, file);
  if (result == FileResult::kMapped && rename(temporary, path) != 0) result = FileResult::kFailed;
  if (result != FileResult::kMapped) unlink(temporary);
  return result;
}

}  // namespace

void cache_path(const char* dir, const tinyqmoe_tensor& coded, char path[kMaxPath]) {
  std::snprintf(path, kMaxPath, "%s/tqlz-%" PRIu32 "x%" PRIu32 "-%08" PRIx32 "-%08" PRIx32 "-%08" PRIx32 ".raw", dir,
                coded.info.rows, coded.info.cols, load<uint32_t>(coded.header + 48),
                load<uint32_t>(coded.header + 52), coded.info.header_crc32);
}

FileResult open_cached(const tinyqmoe_tensor& coded, Form form, const tinyqmoe_threads* threads, const char* path,
                       MappedCopy* copy, bool* wrote) {
  *wrote = false;
  if (map_copy(coded, form, path, copy)) return FileResult::kMapped;
  const FileResult result = write_copy(coded, form, threads, path);
  if (result != FileResult::kMapped) return result;
  *wrote = true;
  return map_copy(coded, form, path, copy) ? FileResult::kMapped : FileResult::kFailed;
}

}  // namespace tinyqmoe

#endif  // !defined(__wasm__)
