// Which form of a tensor a product uses.
//
// One lock guards all that is here. It is held for list walks only: forms are made and unmapped without it, so an
// acquire never waits for the expansion of another tensor, nor a memory warning for a product.
#include "residency.h"

#include <algorithm>
#include <cstddef>
#include <mutex>
#include <new>

#include "bytes.h"
#include "cache_file.h"
#include "expand.h"
#include "forever.h"
#include "pages.h"
#include "rows.h"

namespace tinyqmoe {

// A form in memory or in a mapped file.
struct Form {
  uint8_t* bytes;
  uint64_t n_bytes;
  tinyqmoe_tensor* tensor;
  bool dirty;           // anonymous memory, which the budget counts
  uint32_t references;  // of its entry, while that keeps it, and of products
  Form* next;           // in Garbage
};

// What is known of the tensors with one header.
struct Entry {
  uint8_t header[kHeaderBytes];
  uint32_t tensors;     // open, and acquired at least once
  double gain;          // nanoseconds saved for a byte of the form; 0: there is nothing to expand
  uint64_t form_bytes;  // anonymous
  bool raw;
  bool used;            // since the budget was set; what a model left that is no longer run has no share in it
  bool wanted;          // the budget holds its form
  bool building;
  bool bad;             // it did not expand: not tried again until a setting changes
  bool bad_file;        // nor into a file: not tried again until the folder is set
  Form* form;
  PageRange pages;      // what its last product read; nothing where the form was dirty
  uint64_t pinned_bytes;  // of these, from the first on, that stay in memory
  bool asked;           // the first block that passes is on its way
  Entry* successor;     // what was acquired after it
  Entry* next;          // by gain, the highest first; among equals by first use
};

}  // namespace tinyqmoe

struct tinyqmoe_form {
  tinyqmoe::Entry* entry;
  tinyqmoe::Form* form;  // null: the tensor itself
  const tinyqmoe_tensor* tensor;
  uint32_t next_row;     // of tinyqmoe_form_next_rows
  uint64_t given_back;   // bytes of the blob, from pinned_bytes on; the first part last
  // As planned when the product began:
  uint64_t block_bytes;  // that pass at a time; 0: nothing passes
  uint64_t pinned_bytes;
  tinyqmoe::PageRange following;  // what passes after this tensor
};

namespace tinyqmoe {
namespace {

// Nanoseconds a weight of a product with one token and one scale a row, as `python benchmarks/residency_speed.py` gives
// them on one core of an AMD EPYC with AVX2. Only the order of what is saved matters. Columns: raw forms of 2, 4 and 8
// bits.
constexpr double kRawNs[3] = {0.020, 0.027, 0.053};
constexpr double kLzwNs[3][3] = {
    {0.14, 0.35, 0.65},  // codewords of 8 bits
    {0.12, 0.26, 0.70},  // 12
    {0.13, 0.27, 0.52},  // 16
};

double gain_of(const tinyqmoe_info& info) {
  if (info.codec == kRaw) return 0.0;
  const uint32_t bits = raw_bits(info.n_levels);
  const uint32_t column = bits == 2 ? 0 : bits == 4 ? 1 : 2;
  const double saved = kLzwNs[info.code_bits / 4 - 2][column] - kRawNs[column];
  return saved * 8 / bits;
}

struct Manager {
  std::mutex mutex;
  uint64_t budget;
  uint64_t clean_budget = UINT64_MAX;
  char cache_dir[kMaxFolder];  // empty: none
  uint64_t settings;         // how often the folder was set
  Entry* entries;
  uint32_t n_entries;
  Entry* last;               // acquired
  bool clean_plan_stale;
  tinyqmoe_residency_stats stats;  // what is counted as it happens
};

Forever<Manager> g_manager;
Manager& g = g_manager.value;

// Forms that nothing uses any more. Declared before the lock, so that they are unmapped after it is given up; their
// bytes count until then.
struct Garbage {
  Form* first = nullptr;

  ~Garbage() {
    while (first != nullptr) {
      Form* const form = first;
      first = form->next;
      tinyqmoe_close(form->tensor);
      unmap(form->bytes, form->n_bytes);
      {
        const std::lock_guard<std::mutex> lock(g.mutex);
        (form->dirty ? g.stats.dirty_bytes : g.stats.file_bytes) -= form->n_bytes;
      }
      delete form;
    }
  }

  void unreference(Form* form) {
    if (--form->references > 0) return;
    form->next = first;
    first = form;
  }

  void drop_form(Entry* entry) {
    unreference(entry->form);
    entry->form = nullptr;
    g.clean_plan_stale = true;
  }
};

// ---- plans ----

bool is_dirty(const Entry& entry) { return entry.form != nullptr && entry.form->dirty; }

// Entries are in the order in which the budget serves them; what it no longer holds is dropped.
void plan_budget(Garbage* garbage) {
  uint64_t room = g.budget;
  for (Entry* e = g.entries; e != nullptr; e = e->next) {
    e->wanted = e->used && e->gain > 0 && !e->bad && e->form_bytes <= room;
    if (e->wanted) room -= e->form_bytes;
    if (!e->wanted && is_dirty(*e)) garbage->drop_form(e);
  }
}

uint64_t kept_bytes() {
  uint64_t bytes = 0;
  for (const Entry* e = g.entries; e != nullptr; e = e->next) bytes += is_dirty(*e) ? e->form->n_bytes : 0;
  return bytes;
}

Entry* last_expanded() {
  Entry* last = nullptr;
  for (Entry* e = g.entries; e != nullptr; e = e->next) last = is_dirty(*e) ? e : last;
  return last;
}

// Three blocks are in memory at a time: in use, on its way in, on its way out.
uint64_t block_bytes() { return std::clamp<uint64_t>(g.clean_budget / 64, 64 << 10, 4 << 20); }
constexpr uint64_t kBlocksPassing = 3;

// Eviction of the least recently used would read the whole cycle anew each token, however little is missing. So a part
// stays, and the rest passes through in small blocks: a token reads what is missing and no more.
void plan_pins() {
  g.clean_plan_stale = false;
  uint64_t total = 0;
  for (const Entry* e = g.entries; e != nullptr; e = e->next) total += e->pages.bytes;
  const uint64_t passage = total <= g.clean_budget ? 0 : kBlocksPassing * block_bytes();
  uint64_t room = g.clean_budget - std::min(g.clean_budget, passage);
  g.stats.pinned_bytes = 0;
  for (Entry* e = g.entries; e != nullptr; e = e->next) {
    e->pinned_bytes = std::min(e->pages.bytes, room);
    if (e->pinned_bytes < e->pages.bytes) e->pinned_bytes = e->pinned_bytes / page_bytes() * page_bytes();
    room -= e->pinned_bytes;
    g.stats.pinned_bytes += e->pinned_bytes;
  }
}

bool manages_pages() { return g.clean_budget != UINT64_MAX; }

// ---- entries ----

Entry* find_entry(const uint8_t* header) {
  Entry* e = g.entries;
  while (e != nullptr && std::memcmp(e->header, header, kHeaderBytes) != 0) e = e->next;
  return e;
}

Entry* add_entry(const tinyqmoe_tensor& tensor) {
  Entry* const entry = new (std::nothrow) Entry{};
  if (entry == nullptr) return nullptr;
  std::memcpy(entry->header, tensor.header, kHeaderBytes);
  entry->raw = tensor.info.codec == kRaw;
  entry->gain = gain_of(tensor.info);
  entry->form_bytes = round_up(raw_blob_bytes(tensor.info), page_bytes());
  Entry** link = &g.entries;
  while (*link != nullptr && (*link)->gain >= entry->gain) link = &(*link)->next;
  entry->next = *link;
  *link = entry;
  ++g.n_entries;
  return entry;
}

// Null: out of memory. What gives way to a new tensor is gone when this returns.
Entry* register_tensor(const tinyqmoe_tensor& tensor) {
  Garbage garbage;
  const std::lock_guard<std::mutex> lock(g.mutex);
  Entry* entry = tensor.entry;
  if (entry == nullptr) {
    entry = find_entry(tensor.header);
    if (entry == nullptr) entry = add_entry(tensor);
    if (entry == nullptr) return nullptr;
    ++entry->tensors;
    tensor.entry = entry;
  }
  if (!entry->used) {
    entry->used = true;
    plan_budget(&garbage);
  }
  return entry;
}

void remove_entry(Entry* entry, Garbage* garbage) {
  if (entry->form != nullptr) garbage->drop_form(entry);
  Entry** link = &g.entries;
  while (*link != entry) link = &(*link)->next;
  *link = entry->next;
  --g.n_entries;
  for (Entry* e = g.entries; e != nullptr; e = e->next) {
    if (e->successor == entry) e->successor = nullptr;
  }
  if (g.last == entry) g.last = nullptr;
  delete entry;
  plan_budget(garbage);
  g.clean_plan_stale = true;
}

// ---- making forms ----

enum class Make { kNothing, kMemory, kFile };

struct Order {
  Make make;
  uint64_t settings;
  char path[kMaxPath];
};

// Reserves the memory it will take, so that the budget holds while it is made.
void give_order(Entry* entry, const tinyqmoe_tensor& coded, Order* order) {
  const std::lock_guard<std::mutex> lock(g.mutex);
  order->make = Make::kNothing;
  order->settings = g.settings;
  if (entry->gain <= 0 || entry->bad || entry->building || is_dirty(*entry)) return;
  if (entry->wanted && g.stats.dirty_bytes + entry->form_bytes <= g.budget) {
    g.stats.dirty_bytes += entry->form_bytes;
    g.stats.dirty_peak_bytes = std::max(g.stats.dirty_peak_bytes, g.stats.dirty_bytes);
    order->make = Make::kMemory;
  } else if (entry->form == nullptr && !entry->wanted && !entry->bad_file && g.cache_dir[0] != '\0') {
    cache_path(g.cache_dir, coded, order->path);
    order->make = Make::kFile;
  }
  entry->building = order->make != Make::kNothing;
}

Form* make_in_memory(const tinyqmoe_tensor& coded, uint64_t n_bytes) {
  Form* const form = new (std::nothrow) Form{map_memory(n_bytes), n_bytes, nullptr, true, 1, nullptr};
  if (form == nullptr) return nullptr;
  tinyqmoe_status status = form->bytes == nullptr ? TINYQMOE_OUT_OF_MEMORY : expand_to_memory(coded, form->bytes);
  if (status == TINYQMOE_OK) status = tinyqmoe_open(form->bytes, n_bytes, 0, &form->tensor);
  if (status == TINYQMOE_OK) return form;
  if (form->bytes != nullptr) unmap(form->bytes, n_bytes);
  delete form;
  return nullptr;
}

Form* make_in_file(const tinyqmoe_tensor& coded, const char* path, FileResult* result, bool* wrote) {
  MappedForm mapped;
  *result = open_cached(coded, path, &mapped, wrote);
  if (*result != FileResult::kMapped) return nullptr;
  Form* const form = new (std::nothrow) Form{mapped.bytes, mapped.n_bytes, mapped.tensor, false, 1, nullptr};
  if (form != nullptr) return form;
  tinyqmoe_close(mapped.tensor);
  unmap(mapped.bytes, mapped.n_bytes);
  *result = FileResult::kFailed;
  return nullptr;
}

// Takes a new form over if it is still asked for; if not, the product it was made for is the only one to use it.
void keep(Entry* entry, Form* form, bool is_asked_for, Garbage* garbage) {
  if (!is_asked_for || is_dirty(*entry)) return;
  if (entry->form != nullptr) garbage->drop_form(entry);
  ++form->references;
  entry->form = form;
  g.clean_plan_stale = true;
}

Form* make_memory_form(Entry* entry, const tinyqmoe_tensor& coded) {
  Form* const form = make_in_memory(coded, entry->form_bytes);
  Garbage garbage;
  const std::lock_guard<std::mutex> lock(g.mutex);
  entry->building = false;
  if (form != nullptr) {
    ++g.stats.expansions;
    keep(entry, form, entry->wanted, &garbage);
  } else {
    g.stats.dirty_bytes -= entry->form_bytes;
    entry->bad = true;
    plan_budget(&garbage);
  }
  return form;
}

Form* make_file_form(Entry* entry, const tinyqmoe_tensor& coded, const Order& order) {
  FileResult result;
  bool wrote;
  Form* const form = make_in_file(coded, order.path, &result, &wrote);
  Garbage garbage;
  const std::lock_guard<std::mutex> lock(g.mutex);
  entry->building = false;
  const bool same_folder = order.settings == g.settings;
  if (form != nullptr) {
    g.stats.expansions += wrote;
    g.stats.file_bytes += form->n_bytes;
    keep(entry, form, same_folder && !entry->wanted, &garbage);
  } else if (result != FileResult::kBusy && same_folder) {
    entry->bad = result == FileResult::kBadBlob;
    entry->bad_file = true;  // so that it is counted once, also when a new budget lets it try memory again
    ++g.stats.file_failures;
    plan_budget(&garbage);
  }
  return form;
}

// The form that this product should have and has not, with a reference. Null: the product takes what there is.
Form* make_form(Entry* entry, const tinyqmoe_tensor& coded) {
  Order order;
  give_order(entry, coded, &order);
  if (order.make == Make::kMemory) return make_memory_form(entry, coded);
  return order.make == Make::kFile ? make_file_form(entry, coded, order) : nullptr;
}

// ---- products ----

void count_product(const tinyqmoe_form& use) {
  if (use.form != nullptr) {
    ++g.stats.products_from_forms;
  } else if (use.entry->raw) {
    ++g.stats.products_raw;
  } else {
    ++g.stats.products_from_codes;
    g.stats.code_bytes_read += use.tensor->info.total_bytes;
  }
}

bool passes(const Entry& entry) { return entry.pinned_bytes < entry.pages.bytes; }

Entry* next_passing(Entry* entry) {
  Entry* e = entry->successor;
  for (uint32_t i = 0; i < g.n_entries && e != nullptr; ++i, e = e->successor) {
    if (passes(*e)) return e == entry ? nullptr : e;
  }
  return nullptr;
}

// The first block of an entry that passes, unless somebody has asked for it.
PageRange first_block(Entry* entry) {
  if (entry == nullptr || entry->asked) return {};
  entry->asked = true;
  const uint64_t left = entry->pages.bytes - entry->pinned_bytes;
  return {entry->pages.begin + entry->pinned_bytes, std::min(left, block_bytes())};
}

// Nothing for a form in memory, also one that its entry has dropped.
PageRange clean_pages(const tinyqmoe_form& use) {
  if (use.form != nullptr && use.form->dirty) return {};
  return {use.tensor->bytes, use.tensor->info.total_bytes};
}

// The order of use repeats with each token: what passes through memory is asked for while what is before it is in use.
// Returns what to ask for now.
PageRange note_pages(tinyqmoe_form* use) {
  Entry* const entry = use->entry;
  if (g.last != nullptr && g.last != entry) g.last->successor = entry;
  g.last = entry;
  const PageRange pages = clean_pages(*use);
  if (pages.begin != entry->pages.begin || pages.bytes != entry->pages.bytes) {
    entry->pages = pages;
    entry->asked = false;
    g.clean_plan_stale = true;
  }
  if (!manages_pages()) return {};
  if (g.clean_plan_stale) plan_pins();
  if (!passes(*entry)) return {};
  use->block_bytes = block_bytes();
  use->pinned_bytes = entry->pinned_bytes;
  const PageRange first = first_block(entry);
  use->following = first_block(next_passing(entry));
  return first;
}

// Returns what to ask for.
PageRange start_product(tinyqmoe_form* use) {
  const std::lock_guard<std::mutex> lock(g.mutex);
  if (use->form == nullptr && use->entry->form != nullptr) {
    use->form = use->entry->form;
    ++use->form->references;
  }
  if (use->form != nullptr) use->tensor = use->form->tensor;
  count_product(*use);
  return note_pages(use);
}

// ---- what passes, block by block ----

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

// The rows of one block, from `row` on: all that stay and a block more at the beginning.
uint32_t block_end(const tinyqmoe_form& use, uint32_t row) {
  const uint64_t begin = std::max(row_offset(*use.tensor, row), use.pinned_bytes);
  return row_past(*use.tensor, row, begin + use.block_bytes);
}

// The last offset up to this one at which a page begins.
uint64_t page_offset(const tinyqmoe_tensor& tensor, uint64_t offset) {
  return offset - std::min(offset, reinterpret_cast<uintptr_t>(tensor.bytes + offset) % page_bytes());
}

void return_pages(tinyqmoe_form* use, uint64_t begin, uint64_t end) {
  if (begin >= end) return;
  give_back({use->tensor->bytes + begin, end - begin});
  use->given_back += end - begin;
}

// After a block: what lies behind its rows, whole pages of them; header and index are still needed.
void return_rows(tinyqmoe_form* use, uint32_t end_row) {
  const uint64_t index_end = static_cast<uint64_t>(use->tensor->payload - use->tensor->bytes);
  const uint64_t from = std::max(use->pinned_bytes, index_end) + use->given_back;
  return_pages(use, from, page_offset(*use->tensor, row_offset(*use->tensor, end_row)));
}

// At the end of the product: the rest, and what lies before the rows.
void return_rest(tinyqmoe_form* use) {
  const uint64_t index_end = static_cast<uint64_t>(use->tensor->payload - use->tensor->bytes);
  return_pages(use, std::max(use->pinned_bytes, index_end) + use->given_back, use->tensor->info.total_bytes);
  return_pages(use, use->pinned_bytes, index_end);
}

}  // namespace

void forget(const tinyqmoe_tensor& tensor) {
  Garbage garbage;
  const std::lock_guard<std::mutex> lock(g.mutex);
  if (tensor.entry != nullptr && --tensor.entry->tensors == 0) remove_entry(tensor.entry, &garbage);
}

}  // namespace tinyqmoe

using namespace tinyqmoe;

extern "C" {

void tinyqmoe_set_budget(uint64_t bytes) {
  Garbage garbage;
  const std::lock_guard<std::mutex> lock(g.mutex);
  g.budget = bytes;
  plan_budget(&garbage);
  for (Entry* e = g.entries; e != nullptr; e = e->next) {
    e->bad = false;
    e->used = e->used && is_dirty(*e);
  }
  plan_budget(&garbage);
}

void tinyqmoe_trim(uint64_t n_bytes, uint64_t* freed) {
  Garbage garbage;
  const std::lock_guard<std::mutex> lock(g.mutex);
  const uint64_t before = kept_bytes();
  while (Entry* last = last_expanded()) {
    if (before - kept_bytes() >= n_bytes) break;
    garbage.drop_form(last);
  }
  g.budget = std::min(g.budget, kept_bytes());
  plan_budget(&garbage);
  if (freed != nullptr) *freed = before - kept_bytes();
}

tinyqmoe_status tinyqmoe_set_cache_dir(const char* path) {
  const size_t n = path == nullptr ? 0 : std::strlen(path);
  if (n >= kMaxFolder) return TINYQMOE_BAD_ARGUMENT;
  Garbage garbage;
  const std::lock_guard<std::mutex> lock(g.mutex);
  std::memcpy(g.cache_dir, path == nullptr ? "" : path, n + 1);
  ++g.settings;
  g.stats.file_failures = 0;
  for (Entry* e = g.entries; e != nullptr; e = e->next) {
    e->bad = e->bad_file = false;
    if (e->form != nullptr && !e->form->dirty) garbage.drop_form(e);
  }
  plan_budget(&garbage);
  return TINYQMOE_OK;
}

void tinyqmoe_set_clean_budget(uint64_t bytes) {
  const std::lock_guard<std::mutex> lock(g.mutex);
  g.clean_budget = bytes;
  g.clean_plan_stale = true;
  g.stats.pinned_bytes = 0;
  // What a model left that is no longer run has no share in it either: the next token says what is read.
  for (Entry* e = g.entries; e != nullptr; e = e->next) e->pages = {};
}

tinyqmoe_status tinyqmoe_stats(tinyqmoe_residency_stats* out) {
  if (out == nullptr || out->struct_bytes < sizeof out->struct_bytes) return TINYQMOE_BAD_ARGUMENT;
  tinyqmoe_residency_stats stats;
  {
    const std::lock_guard<std::mutex> lock(g.mutex);
    stats = g.stats;
    stats.budget_bytes = g.budget;
    stats.clean_budget_bytes = g.clean_budget;
    for (const Entry* e = g.entries; e != nullptr; e = e->next) {
      ++stats.tensors_known;
      ++(e->raw ? stats.tensors_raw
                : e->form == nullptr ? stats.tensors_streamed
                                     : e->form->dirty ? stats.tensors_expanded : stats.tensors_from_file);
    }
  }
  stats.struct_bytes = out->struct_bytes;
  std::memcpy(out, &stats, std::min<uint64_t>(out->struct_bytes, sizeof stats));
  return TINYQMOE_OK;
}

tinyqmoe_status tinyqmoe_acquire(const tinyqmoe_tensor* tensor, tinyqmoe_form** out) {
  if (out == nullptr) return TINYQMOE_BAD_ARGUMENT;
  *out = nullptr;
  if (tensor == nullptr) return TINYQMOE_BAD_ARGUMENT;
  tinyqmoe_form* const use = new (std::nothrow) tinyqmoe_form{};
  if (use == nullptr) return TINYQMOE_OUT_OF_MEMORY;
  use->tensor = tensor;
  use->entry = register_tensor(*tensor);
  if (use->entry == nullptr) {
    delete use;
    return TINYQMOE_OUT_OF_MEMORY;
  }
  use->form = make_form(use->entry, *tensor);
  ask_for(start_product(use));
  *out = use;
  return TINYQMOE_OK;
}

const tinyqmoe_tensor* tinyqmoe_form_tensor(const tinyqmoe_form* form) { return form->tensor; }

bool tinyqmoe_form_next_rows(tinyqmoe_form* form, uint32_t* begin, uint32_t* end) {
  const uint32_t rows = form->tensor->info.rows;
  if (form->block_bytes > 0 && form->next_row > 0) return_rows(form, form->next_row);
  if (form->next_row >= rows) return false;
  *begin = form->next_row;
  *end = form->block_bytes > 0 ? block_end(*form, *begin) : rows;
  form->next_row = *end;
  if (form->block_bytes == 0) return true;
  if (*end == rows) {
    ask_for(form->following);
  } else {
    const uint64_t next = row_offset(*form->tensor, *end);
    ask_for({form->tensor->bytes + next, row_offset(*form->tensor, block_end(*form, *end)) - next});
  }
  return true;
}

void tinyqmoe_release(tinyqmoe_form* form) {
  if (form == nullptr) return;
  if (form->block_bytes > 0) return_rest(form);
  Garbage garbage;
  {
    const std::lock_guard<std::mutex> lock(g.mutex);
    if (form->block_bytes > 0) form->entry->asked = false;
    g.stats.given_back_bytes += form->given_back;
    if (form->form != nullptr) garbage.unreference(form->form);
  }
  delete form;
}

}  // extern "C"
