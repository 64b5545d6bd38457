// Memory by whole pages: anonymous memory that goes back to the system at once, and hints about mapped weights.
#ifndef TINYQMOE_CORE_PAGES_H_
#define TINYQMOE_CORE_PAGES_H_

#include <cstdint>

namespace tinyqmoe {

uint64_t page_bytes();

// Zeroed; null when there is none. Free with unmap.
uint8_t* map_memory(uint64_t bytes);
void unmap(uint8_t* memory, uint64_t bytes);

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
