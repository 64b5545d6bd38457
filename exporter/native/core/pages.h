// Memory by whole pages: anonymous memory that goes back to the system at once, files, and hints about mapped weights.
#ifndef TINYQMOE_CORE_PAGES_H_
#define TINYQMOE_CORE_PAGES_H_

#include <cstdint>

namespace tinyqmoe {

// Whether a file can be mapped, so that its pages are clean. In WebAssembly it is read into memory.
#if defined(__wasm__)
constexpr bool kHasCleanPages = false;
#else
constexpr bool kHasCleanPages = true;
#endif

uint64_t page_bytes();

// Zeroed; null when there is none. Free with unmap.
uint8_t* map_memory(uint64_t bytes);
void unmap(uint8_t* memory, uint64_t bytes);

// The bytes of a whole file, to be read only; null when there is none, or nothing in it. Free with unmap.
uint8_t* map_file(const char* path, uint64_t* bytes);

// Writes all n bytes at `offset` of a file. False: it cannot be written.
bool write_at(int file, const void* bytes, uint64_t n, uint64_t offset);

struct PageRange {
  const uint8_t* begin;
  uint64_t bytes;
};

// Starts reading the range from its file. Only a hint: anything may lie there by now.
void prefetch(const PageRange& range);

// Takes the pages that lie wholly in the range out of memory. Nothing is lost: what is written there is written out.
void evict(const PageRange& range);

}  // namespace tinyqmoe
#endif  // TINYQMOE_CORE_PAGES_H_
