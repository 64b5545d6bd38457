// The C interface of the residency manager: settings, statistics, and the weights that a product uses.
#include "residency.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "residency_state.h"

namespace tinyqmoe {
namespace {

void count_product(const tinyqmoe_form& use) {
  if (use.copy != nullptr) {
    ++g_manager.stats.products_from_forms;
  } else if (use.entry->raw) {
    ++g_manager.stats.products_raw;
  } else {
    ++g_manager.stats.products_from_codes;
    g_manager.stats.code_bytes_read += use.tensor->info.total_bytes;
  }
}

// Returns what to prefetch.
PageRange start_product(tinyqmoe_form* use) {
  const std::lock_guard<Mutex> lock(g_manager.mutex);
  if (use->copy == nullptr && use->entry->copy != nullptr) {
    use->copy = use->entry->copy;
    ++use->copy->references;
  }
  if (use->copy != nullptr) use->tensor = use->copy->tensor;
  count_product(*use);
  return note_pages(use);
}

}  // namespace
}  // namespace tinyqmoe

using namespace tinyqmoe;

extern "C" {

void tinyqmoe_set_budget(uint64_t bytes) {
  Garbage garbage;
  const std::lock_guard<Mutex> lock(g_manager.mutex);
  g_manager.budget = bytes;
  plan_budget(&garbage);
  for (Entry* e = g_manager.entries; e != nullptr; e = e->next) {
    e->bad = false;
    e->used = e->used && is_dirty(*e);
  }
  plan_budget(&garbage);
}

void tinyqmoe_trim(uint64_t n_bytes, uint64_t* freed) {
  Garbage garbage;
  const std::lock_guard<Mutex> lock(g_manager.mutex);
  const uint64_t before = kept_bytes();
  while (Entry* last = last_expanded()) {
    if (before - kept_bytes() >= n_bytes) break;
    garbage.drop_copy(last);
  }
  g_manager.budget = std::min(g_manager.budget, kept_bytes());
  plan_budget(&garbage);
  if (freed != nullptr) *freed = before - kept_bytes();
}

tinyqmoe_status tinyqmoe_set_cache_dir(const char* path) {
  const size_t n = path == nullptr ? 0 : std::strlen(path);
  if (n >= kMaxFolder || (n > 0 && !kHasCleanPages)) return TINYQMOE_BAD_ARGUMENT;
  Garbage garbage;
  const std::lock_guard<Mutex> lock(g_manager.mutex);
  std::memcpy(g_manager.cache_dir, path == nullptr ? "" : path, n + 1);
  ++g_manager.settings;
  g_manager.stats.file_failures = 0;
  for (Entry* e = g_manager.entries; e != nullptr; e = e->next) {
    e->bad = e->bad_file = false;
    if (e->copy != nullptr && !e->copy->dirty) garbage.drop_copy(e);
  }
  plan_budget(&garbage);
  return TINYQMOE_OK;
}

tinyqmoe_status tinyqmoe_stats(tinyqmoe_residency_stats* out) {
  if (out == nullptr || out->struct_bytes < sizeof out->struct_bytes) return TINYQMOE_BAD_ARGUMENT;
  tinyqmoe_residency_stats stats;
  {
    const std::lock_guard<Mutex> lock(g_manager.mutex);
    stats = g_manager.stats;
    stats.budget_bytes = g_manager.budget;
    stats.clean_budget_bytes = g_manager.clean_budget;
    for (const Entry* e = g_manager.entries; e != nullptr; e = e->next) {
      ++stats.tensors_known;
      ++(e->raw ? stats.tensors_raw
                : e->copy == nullptr ? stats.tensors_streamed
                                     : e->copy->dirty ? stats.tensors_expanded : stats.tensors_from_file);
    }
  }
  stats.struct_bytes = out->struct_bytes;
  std::memcpy(out, &stats, std::min<uint64_t>(out->struct_bytes, sizeof stats));
  return TINYQMOE_OK;
}

tinyqmoe_status tinyqmoe_acquire(const tinyqmoe_tensor* tensor, tinyqmoe_form** out) {
  return tinyqmoe_acquire_with_threads(tensor, nullptr, out);
}

tinyqmoe_status tinyqmoe_acquire_with_threads(const tinyqmoe_tensor* tensor, const tinyqmoe_threads* threads,
                                              tinyqmoe_form** out) {
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
  const tinyqmoe_status status = make_copy(use->entry, *tensor, threads, &use->copy);
  if (status != TINYQMOE_OK) {
    delete use;
    return status;
  }
  prefetch(start_product(use));
  *out = use;
  return TINYQMOE_OK;
}

const tinyqmoe_tensor* tinyqmoe_form_tensor(const tinyqmoe_form* form) { return form->tensor; }

void tinyqmoe_release(tinyqmoe_form* form) {
  if (form == nullptr) return;
  if (form->block_bytes > 0) evict_rest(form);
  Garbage garbage;
  {
    const std::lock_guard<Mutex> lock(g_manager.mutex);
    if (form->block_bytes > 0) form->entry->prefetched = false;
    g_manager.stats.given_back_bytes += form->evicted_bytes;
    if (form->copy != nullptr) garbage.unreference(form->copy);
  }
  delete form;
}

}  // extern "C"
