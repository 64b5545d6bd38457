// Expanded copies: made in memory within the budget, or in a cache file, and freed with their last use.
#include <algorithm>
#include <new>

#include "expand.h"
#include "residency.h"
#include "residency_state.h"
#include "rows.h"

namespace tinyqmoe {
namespace {

enum class Target { kNone, kMemory, kFile };

struct Expansion {
  tinyqmoe_status damage;
  Target target;
  Form form;
  uint64_t settings;
  char path[kMaxPath];
};

// Reserves the memory that the copy will take, so that the budget holds while it is made.
void plan_expansion(Entry* entry, const tinyqmoe_tensor& coded, Expansion* expansion) {
  const std::lock_guard<Mutex> lock(g_manager.mutex);
  expansion->target = Target::kNone;
  expansion->damage = entry->damage;
  expansion->form = entry->form;
  expansion->settings = g_manager.settings;
  if (entry->gain <= 0 || entry->bad || entry->building || is_dirty(*entry)) return;
  if (entry->wanted && g_manager.stats.dirty_bytes + entry->copy_bytes <= g_manager.budget) {
    g_manager.stats.dirty_bytes += entry->copy_bytes;
    g_manager.stats.dirty_peak_bytes = std::max(g_manager.stats.dirty_peak_bytes, g_manager.stats.dirty_bytes);
    expansion->target = Target::kMemory;
  } else if (entry->copy == nullptr && !entry->wanted && !entry->bad_file && g_manager.cache_dir[0] != '\0') {
    cache_path(g_manager.cache_dir, coded, expansion->path);
    expansion->target = Target::kFile;
  }
  entry->building = expansion->target != Target::kNone;
}

tinyqmoe_status new_memory_copy(const tinyqmoe_tensor& coded, Form form, const tinyqmoe_threads* threads,
                                uint64_t n_bytes, ExpandedCopy** out) {
  ExpandedCopy* const copy = new (std::nothrow) ExpandedCopy{map_memory(n_bytes), n_bytes, nullptr, true, 1, nullptr};
  if (copy == nullptr) return TINYQMOE_OUT_OF_MEMORY;
  tinyqmoe_status status = TINYQMOE_OUT_OF_MEMORY;
  if (copy->bytes != nullptr) status = expand_to_memory(coded, form, threads, copy->bytes);
  if (status == TINYQMOE_OK) status = open_copy(copy->bytes, n_bytes, 0, &copy->tensor);
  if (status == TINYQMOE_OK) {
    mark_checked(*copy->tensor);  // decoding checked its levels
    *out = copy;
    return TINYQMOE_OK;
  }
  if (copy->bytes != nullptr) unmap(copy->bytes, n_bytes);
  delete copy;
  return status;
}

ExpandedCopy* new_file_copy(const tinyqmoe_tensor& coded, const tinyqmoe_threads* threads, const Expansion& expansion,
                            FileResult* result, bool* wrote) {
  MappedCopy mapped;
  *result = open_cached(coded, expansion.form, threads, expansion.path, &mapped, wrote);
  if (*result != FileResult::kMapped) return nullptr;
  ExpandedCopy* const copy =
      new (std::nothrow) ExpandedCopy{mapped.bytes, mapped.n_bytes, mapped.tensor, false, 1, nullptr};
  if (copy != nullptr) return copy;
  tinyqmoe_close(mapped.tensor);
  unmap(mapped.bytes, mapped.n_bytes);
  *result = FileResult::kFailed;
  return nullptr;
}

// Keeps a new copy if it is still wanted; if not, the product it was made for is the only one to use it.
void keep(Entry* entry, ExpandedCopy* copy, bool is_wanted, Garbage* garbage) {
  if (!is_wanted || is_dirty(*entry)) return;
  if (entry->copy != nullptr) garbage->drop_copy(entry);
  ++copy->references;
  entry->copy = copy;
  g_manager.clean_plan_stale = true;
}

// Without memory for a copy, products go on from the codes. BUFFER_TOO_SMALL: the next try is another form.
tinyqmoe_status expand_into_memory(Entry* entry, const tinyqmoe_tensor& coded, const tinyqmoe_threads* threads,
                                   const Expansion& expansion, ExpandedCopy** out) {
  ExpandedCopy* copy = nullptr;
  const tinyqmoe_status status = new_memory_copy(coded, expansion.form, threads, entry->copy_bytes, &copy);
  Garbage garbage;
  const std::lock_guard<Mutex> lock(g_manager.mutex);
  entry->building = false;
  if (copy != nullptr) {
    ++g_manager.stats.expansions;
    entry->damage = TINYQMOE_OK;
    keep(entry, copy, entry->wanted, &garbage);
  } else if (status == TINYQMOE_BUFFER_TOO_SMALL) {
    g_manager.stats.dirty_bytes -= entry->copy_bytes;
    take_wider_form(entry, coded.info, &garbage);
    return status;
  } else {
    g_manager.stats.dirty_bytes -= entry->copy_bytes;
    entry->bad = true;
    if (status != TINYQMOE_OUT_OF_MEMORY) entry->damage = status;
    plan_budget(&garbage);
  }
  *out = copy;
  return entry->damage;
}

// Without a file for a copy, products go on from the codes. BUFFER_TOO_SMALL: as above.
tinyqmoe_status expand_into_file(Entry* entry, const tinyqmoe_tensor& coded, const tinyqmoe_threads* threads,
                                 const Expansion& expansion, ExpandedCopy** out) {
  FileResult result;
  bool wrote;
  ExpandedCopy* const copy = new_file_copy(coded, threads, expansion, &result, &wrote);
  Garbage garbage;
  const std::lock_guard<Mutex> lock(g_manager.mutex);
  entry->building = false;
  const bool same_folder = expansion.settings == g_manager.settings;
  if (copy != nullptr) {
    g_manager.stats.expansions += wrote;
    g_manager.stats.file_bytes += copy->n_bytes;
    entry->damage = TINYQMOE_OK;
    keep(entry, copy, same_folder && !entry->wanted, &garbage);
  } else if (result == FileResult::kNoRoom) {
    take_wider_form(entry, coded.info, &garbage);
    return TINYQMOE_BUFFER_TOO_SMALL;
  } else if (result != FileResult::kBusy && same_folder) {
    entry->bad = result == FileResult::kBadBlob;
    if (entry->bad) entry->damage = TINYQMOE_BAD_PAYLOAD_CRC;
    entry->bad_file = true;  // so that it is counted once, also when a new budget lets it try memory again
    ++g_manager.stats.file_failures;
    plan_budget(&garbage);
  }
  *out = copy;
  return entry->damage;
}

}  // namespace

Garbage::~Garbage() {
  while (first != nullptr) {
    ExpandedCopy* const copy = first;
    first = copy->next;
    tinyqmoe_close(copy->tensor);
    unmap(copy->bytes, copy->n_bytes);
    {
      const std::lock_guard<Mutex> lock(g_manager.mutex);
      (copy->dirty ? g_manager.stats.dirty_bytes : g_manager.stats.file_bytes) -= copy->n_bytes;
    }
    delete copy;
  }
}

void Garbage::unreference(ExpandedCopy* copy) {
  if (--copy->references > 0) return;
  copy->next = first;
  first = copy;
}

void Garbage::drop_copy(Entry* entry) {
  unreference(entry->copy);
  entry->copy = nullptr;
  g_manager.clean_plan_stale = true;
}

void expand(const tinyqmoe_tensor& tensor) {
  ExpandedCopy* copy = nullptr;
  make_copy(tensor.entry, tensor, nullptr, &copy);  // of damage the first product tells
  if (copy == nullptr) return;
  Garbage garbage;
  const std::lock_guard<Mutex> lock(g_manager.mutex);
  garbage.unreference(copy);
}

tinyqmoe_status make_copy(Entry* entry, const tinyqmoe_tensor& coded, const tinyqmoe_threads* threads,
                          ExpandedCopy** copy) {
  for (;;) {
    Expansion expansion;
    plan_expansion(entry, coded, &expansion);
    if (expansion.target == Target::kNone) return expansion.damage;
    const auto expand_into = expansion.target == Target::kMemory ? expand_into_memory : expand_into_file;
    const tinyqmoe_status status = expand_into(entry, coded, threads, expansion, copy);
    if (status != TINYQMOE_BUFFER_TOO_SMALL) return status;
  }
}

}  // namespace tinyqmoe
