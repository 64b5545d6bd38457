// The tensors that the residency manager knows, in the order in which the memory budget serves them.
#include <cstring>
#include <new>

#include "bytes.h"
#include "clipped.h"
#include "expand.h"
#include "no_destroy.h"
#include "residency.h"
#include "residency_state.h"

namespace tinyqmoe {
namespace {

NoDestroy<Manager> g_manager_storage;

// Nanoseconds a weight of a product with one token and one scale a row, as `python benchmarks/residency_speed.py` gives
// them on one busy core of an AMD EPYC with AVX2. Only the order of what is saved matters. Columns: copies of 2, 4 and 8
// bits, and of clipped levels of 4, 5 and 6, which were measured later, by what 8 bits took then.
constexpr double kFormNs[6] = {0.060, 0.081, 0.134, 0.093, 0.106, 0.113};
constexpr double kLzwNs[6] = {0.37, 0.56, 0.77, 0.77, 0.77, 0.77};
constexpr double kBase3Ns = 0.088;
constexpr double kExceptionBits = 8.0 * kExceptionBytes / kWeightsPerBlock;

double gain_of(const tinyqmoe_info& info, Form form) {
  if (info.codec == kRaw) return 0.0;
  const bool clipped = form != Form::kRaw;
  const uint32_t bits = clipped ? clipped_bits(form) : raw_bits(info.n_levels);
  const uint32_t column = clipped ? bits - 1 : bits == 2 ? 0 : bits == 4 ? 1 : 2;
  const double coded = info.codec == kBase3 ? kBase3Ns : kLzwNs[column];
  return (coded - kFormNs[column]) * 8 / (bits + (clipped ? kExceptionBits : 0.0));
}

// By gain, behind those that save as much.
void insert(Entry* entry) {
  Entry** link = &g_manager.entries;
  while (*link != nullptr && (*link)->gain >= entry->gain) link = &(*link)->next;
  entry->next = *link;
  *link = entry;
}

void set_form(Entry* entry, const tinyqmoe_info& coded, Form form) {
  entry->form = form;
  entry->gain = gain_of(coded, form);
  entry->copy_bytes = round_up(form_bytes(coded, form), page_bytes());
}

void take_out(Entry* entry) {
  Entry** link = &g_manager.entries;
  while (*link != entry) link = &(*link)->next;
  *link = entry->next;
}

Entry* find_entry(const uint8_t* header) {
  Entry* e = g_manager.entries;
  while (e != nullptr && std::memcmp(e->header, header, kHeaderBytes) != 0) e = e->next;
  return e;
}

Entry* add_entry(const tinyqmoe_tensor& tensor) {
  Entry* const entry = new (std::nothrow) Entry{};
  if (entry == nullptr) return nullptr;
  std::memcpy(entry->header, tensor.header, kHeaderBytes);
  entry->raw = tensor.info.codec == kRaw;
  set_form(entry, tensor.info, form_of(tensor.info));
  insert(entry);
  ++g_manager.n_entries;
  return entry;
}

void remove_entry(Entry* entry, Garbage* garbage) {
  if (entry->copy != nullptr) garbage->drop_copy(entry);
  take_out(entry);
  --g_manager.n_entries;
  for (Entry* e = g_manager.entries; e != nullptr; e = e->next) {
    if (e->successor == entry) e->successor = nullptr;
  }
  if (g_manager.last == entry) g_manager.last = nullptr;
  delete entry;
  plan_budget(garbage);
  g_manager.clean_plan_stale = true;
}

}  // namespace

Manager& g_manager = g_manager_storage.value;

void take_wider_form(Entry* entry, const tinyqmoe_info& coded, Garbage* garbage) {
  take_out(entry);
  set_form(entry, coded, wider_form(coded, entry->form));
  insert(entry);
  plan_budget(garbage);
}

void plan_budget(Garbage* garbage) {
  uint64_t room = g_manager.budget;
  for (Entry* e = g_manager.entries; e != nullptr; e = e->next) {
    e->wanted = e->used && e->gain > 0 && !e->bad && e->copy_bytes <= room;
    if (e->wanted) room -= e->copy_bytes;
    if (!e->wanted && is_dirty(*e)) garbage->drop_copy(e);
  }
}

uint64_t kept_bytes() {
  uint64_t bytes = 0;
  for (const Entry* e = g_manager.entries; e != nullptr; e = e->next) bytes += is_dirty(*e) ? e->copy->n_bytes : 0;
  return bytes;
}

Entry* last_expanded() {
  Entry* last = nullptr;
  for (Entry* e = g_manager.entries; e != nullptr; e = e->next) last = is_dirty(*e) ? e : last;
  return last;
}

Entry* register_tensor(const tinyqmoe_tensor& tensor) {
  Garbage garbage;
  const std::lock_guard<Mutex> lock(g_manager.mutex);
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

tinyqmoe_status announce(const tinyqmoe_tensor& tensor) {
  return register_tensor(tensor) == nullptr ? TINYQMOE_OUT_OF_MEMORY : TINYQMOE_OK;
}

void forget(const tinyqmoe_tensor& tensor) {
  Garbage garbage;
  const std::lock_guard<Mutex> lock(g_manager.mutex);
  if (tensor.entry != nullptr && --tensor.entry->tensors == 0) remove_entry(tensor.entry, &garbage);
}

}  // namespace tinyqmoe
