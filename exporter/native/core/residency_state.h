// What the rooms of the residency manager share: entries.cc (which tensors, and what the budget holds of them),
// expanded_copies.cc (making copies), clean_pages.cc (pinning, prefetching and evicting mapped pages) and residency.cc
// (the C interface).
//
// One lock guards all that is here. It is held for list walks only: copies are made and unmapped without it, so an
// acquire never waits for the expansion of another tensor, nor a memory warning for a product.
#ifndef TINYQMOE_CORE_RESIDENCY_STATE_H_
#define TINYQMOE_CORE_RESIDENCY_STATE_H_

#include <cstddef>
#include <cstdint>

#include "cache_file.h"
#include "pages.h"
#include "tensor.h"
#include "threads.h"

namespace tinyqmoe {

// An expanded copy of a tensor, in memory or in a mapped file.
struct ExpandedCopy {
  uint8_t* bytes;
  uint64_t n_bytes;
  tinyqmoe_tensor* tensor;
  bool dirty;           // anonymous memory, which the budget counts
  uint32_t references;  // of its entry, while that keeps it, and of products
  ExpandedCopy* next;   // in Garbage
};

// What is known of the tensors with one header.
struct Entry {
  uint8_t header[kHeaderBytes];
  uint32_t tensors;     // open, and acquired at least once
  double gain;          // nanoseconds saved for a byte of the expanded copy; 0: there is nothing to expand
  Form form;            // of the expanded copy
  uint64_t copy_bytes;  // anonymous
  bool raw;
  bool used;            // since the budget was set; what a model left that is no longer run has no share in it
  bool wanted;          // the budget holds its expanded copy
  bool building;
  bool bad;             // it did not expand: not tried again until a setting changes
  tinyqmoe_status damage;  // why its payload could not be expanded: products fail, as codes would give other weights
  bool bad_file;        // nor into a file: not tried again until the folder is set
  ExpandedCopy* copy;
  PageRange pages;        // what its last product read; nothing where that was dirty memory
  uint64_t pinned_bytes;  // of these, from the first on, that are pinned
  bool prefetched;        // the first block past them is on its way
  Entry* successor;     // what was acquired after it
  Entry* next;          // by gain, the highest first; among equals by first use
};

struct Manager {
  Mutex mutex;
  uint64_t budget;
  uint64_t clean_budget = UINT64_MAX;
  char cache_dir[kMaxFolder];  // empty: none
  uint64_t settings;           // how often the folder was set
  Entry* entries;
  uint32_t n_entries;
  Entry* last;                 // acquired
  bool clean_plan_stale;
  tinyqmoe_residency_stats stats;  // what is counted as it happens
};

extern Manager& g_manager;

// Copies that nothing uses any more. Declared before the lock, so that they are unmapped after it is released; their
// bytes count until then.
struct Garbage {
  ExpandedCopy* first = nullptr;

  ~Garbage();
  void unreference(ExpandedCopy* copy);
  void drop_copy(Entry* entry);
};

// All that follows but register_tensor and make_copy is called under the lock.

inline bool is_dirty(const Entry& entry) { return entry.copy != nullptr && entry.copy->dirty; }

// For clipped levels that have no room for a tensor's exceptions.
void take_wider_form(Entry* entry, const tinyqmoe_info& coded, Garbage* garbage);

// Decides which entries the budget holds, and drops the copies of the others.
void plan_budget(Garbage* garbage);

// Bytes of the copies in memory that entries keep.
uint64_t kept_bytes();

// The entry with a copy in memory that saves least; null: none.
Entry* last_expanded();

// Null: out of memory. What gives way to a new tensor is gone when this returns.
Entry* register_tensor(const tinyqmoe_tensor& tensor);

// *copy: that which this product should have and has not, with a reference. Null: the product takes what there is. Not
// OK: the payload is damaged. threads: null for the calling one.
tinyqmoe_status make_copy(Entry* entry, const tinyqmoe_tensor& coded, const tinyqmoe_threads* threads,
                          ExpandedCopy** copy);

// The order of use repeats with each token: what is not pinned is prefetched while what is before it is in use. Notes
// the order, and returns what to prefetch now.
PageRange note_pages(tinyqmoe_form* use);

// At the end of the product: what its blocks have not evicted. Needs no lock.
void evict_rest(tinyqmoe_form* use);

}  // namespace tinyqmoe

struct tinyqmoe_form {
  tinyqmoe::Entry* entry;
  tinyqmoe::ExpandedCopy* copy;  // null: the tensor itself
  const tinyqmoe_tensor* tensor;
  uint32_t next_row;             // of tinyqmoe_form_next_rows
  uint64_t evicted_bytes;        // from pinned_bytes on; the part before the rows goes last
  // As planned when the product began:
  uint64_t block_bytes;          // read and evicted at a time; 0: all is pinned
  uint64_t pinned_bytes;
  tinyqmoe::PageRange following;  // the next block that is not pinned, of a later tensor
};

#endif  // TINYQMOE_CORE_RESIDENCY_STATE_H_
