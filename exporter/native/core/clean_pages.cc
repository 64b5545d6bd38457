// Clean pages: what of the mapped weights is pinned under the clean budget, and how the rest is prefetched and evicted,
// block by block, so that a token reads little more than what is missing.
#include <algorithm>

#include "residency_state.h"
#include "rows.h"

namespace tinyqmoe {
namespace {

// Three blocks are in memory at a time: one in use, one being prefetched, one being evicted.
uint64_t block_bytes() { return std::clamp<uint64_t>(g_manager.clean_budget / 64, 64 << 10, 4 << 20); }
constexpr uint64_t kBlocksInFlight = 3;

// Eviction of the least recently used would read the whole cycle anew each token, however little is missing. So a part
// is pinned, and the rest is prefetched and evicted in small blocks: a token reads what is missing and no more.
void plan_pins() {
  g_manager.clean_plan_stale = false;
  uint64_t total = 0;
  for (const Entry* e = g_manager.entries; e != nullptr; e = e->next) total += e->pages.bytes;
  const uint64_t in_flight = total <= g_manager.clean_budget ? 0 : kBlocksInFlight * block_bytes();
  uint64_t room = g_manager.clean_budget - std::min(g_manager.clean_budget, in_flight);
  g_manager.stats.pinned_bytes = 0;
  for (Entry* e = g_manager.entries; e != nullptr; e = e->next) {
    e->pinned_bytes = std::min(e->pages.bytes, room);
    if (e->pinned_bytes < e->pages.bytes) e->pinned_bytes = e->pinned_bytes / page_bytes() * page_bytes();
    room -= e->pinned_bytes;
    g_manager.stats.pinned_bytes += e->pinned_bytes;
  }
}

bool manages_pages() { return g_manager.clean_budget != UINT64_MAX; }

bool has_unpinned(const Entry& entry) { return entry.pinned_bytes < entry.pages.bytes; }

Entry* next_unpinned(Entry* entry) {
  Entry* e = entry->successor;
  for (uint32_t i = 0; i < g_manager.n_entries && e != nullptr; ++i, e = e->successor) {
    if (has_unpinned(*e)) return e == entry ? nullptr : e;
  }
  return nullptr;
}

// The first block that is not pinned, unless it has been prefetched already.
PageRange first_unpinned_block(Entry* entry) {
  if (entry == nullptr || entry->prefetched) return {};
  entry->prefetched = true;
  const uint64_t left = entry->pages.bytes - entry->pinned_bytes;
  return {entry->pages.begin + entry->pinned_bytes, std::min(left, block_bytes())};
}

// Nothing for a copy in memory, also one that its entry has dropped.
PageRange clean_pages(const tinyqmoe_form& use) {
  if (use.copy != nullptr && use.copy->dirty) return {};
  return {use.tensor->bytes, use.tensor->info.total_bytes};
}

// Where the row begins in the blob; `rows` gives its end.
uint64_t row_offset(const tinyqmoe_tensor& tensor, uint32_t row) {
  if (row >= tensor.info.rows) return tensor.info.total_bytes;
  const uint64_t payload = static_cast<uint64_t>(tensor.payload - tensor.bytes);
  return payload + std::min(RowCursor(tensor, row).offset(), tensor.info.payload_bytes);
}

// The first row, a multiple of a tile above `row`, that begins past `offset`; or all rows.
uint32_t row_past(const tinyqmoe_tensor& tensor, uint32_t row, uint64_t offset) {
  uint32_t low = row / kTileRows + 1;
  uint32_t high = (tensor.info.rows + kTileRows - 1) / kTileRows;
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    if (row_offset(tensor, middle * kTileRows) > offset) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return static_cast<uint32_t>(std::min<uint64_t>(uint64_t{high} * kTileRows, tensor.info.rows));
}

// The rows of one block, from `row` on: at the beginning all that are pinned and a block more.
uint32_t block_end(const tinyqmoe_form& use, uint32_t row) {
  const uint64_t begin = std::max(row_offset(*use.tensor, row), use.pinned_bytes);
  return row_past(*use.tensor, row, begin + use.block_bytes);
}

// The last offset up to this one at which a page begins.
uint64_t page_offset(const tinyqmoe_tensor& tensor, uint64_t offset) {
  return offset - std::min(offset, reinterpret_cast<uintptr_t>(tensor.bytes + offset) % page_bytes());
}

void evict_pages(tinyqmoe_form* use, uint64_t begin, uint64_t end) {
  if (begin >= end) return;
  evict({use->tensor->bytes + begin, end - begin});
  use->evicted_bytes += end - begin;
}

// After a block: its rows, whole pages of them; header and index are still needed.
void evict_rows(tinyqmoe_form* use, uint32_t end_row) {
  const uint64_t index_end = static_cast<uint64_t>(use->tensor->payload - use->tensor->bytes);
  const uint64_t from = std::max(use->pinned_bytes, index_end) + use->evicted_bytes;
  evict_pages(use, from, page_offset(*use->tensor, row_offset(*use->tensor, end_row)));
}

}  // namespace

PageRange note_pages(tinyqmoe_form* use) {
  Entry* const entry = use->entry;
  if (g_manager.last != nullptr && g_manager.last != entry) g_manager.last->successor = entry;
  g_manager.last = entry;
  const PageRange pages = clean_pages(*use);
  if (pages.begin != entry->pages.begin || pages.bytes != entry->pages.bytes) {
    entry->pages = pages;
    entry->prefetched = false;
    g_manager.clean_plan_stale = true;
  }
  if (!manages_pages()) return {};
  if (g_manager.clean_plan_stale) plan_pins();
  if (!has_unpinned(*entry)) return {};
  use->block_bytes = block_bytes();
  use->pinned_bytes = entry->pinned_bytes;
  const PageRange first = first_unpinned_block(entry);
  use->following = first_unpinned_block(next_unpinned(entry));
  return first;
}

void evict_rest(tinyqmoe_form* use) {
  const uint64_t index_end = static_cast<uint64_t>(use->tensor->payload - use->tensor->bytes);
  evict_pages(use, std::max(use->pinned_bytes, index_end) + use->evicted_bytes, use->tensor->info.total_bytes);
  evict_pages(use, use->pinned_bytes, index_end);
}

}  // namespace tinyqmoe

using namespace tinyqmoe;

extern "C" {

void tinyqmoe_set_clean_budget(uint64_t bytes) {
  const std::lock_guard<Mutex> lock(g_manager.mutex);
  g_manager.clean_budget = bytes;
  g_manager.clean_plan_stale = true;
  g_manager.stats.pinned_bytes = 0;
  // What a model left that is no longer run has no share in it either: the next token says what is read.
  for (Entry* e = g_manager.entries; e != nullptr; e = e->next) e->pages = {};
}

bool tinyqmoe_form_next_rows(tinyqmoe_form* form, uint32_t* begin, uint32_t* end) {
  const uint32_t rows = form->tensor->info.rows;
  if (form->block_bytes > 0 && form->next_row > 0) evict_rows(form, form->next_row);
  if (form->next_row >= rows) return false;
  *begin = form->next_row;
  *end = form->block_bytes > 0 ? block_end(*form, *begin) : rows;
  form->next_row = *end;
  if (form->block_bytes == 0) return true;
  if (*end == rows) {
    prefetch(form->following);
  } else {
    const uint64_t next = row_offset(*form->tensor, *end);
    prefetch({form->tensor->bytes + next, row_offset(*form->tensor, block_end(*form, *end)) - next});
  }
  return true;
}

}  // extern "C"
