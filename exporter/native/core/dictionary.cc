#include "dictionary.h"

#include <cstring>
#include <mutex>
#include <new>

#include "no_destroy.h"

namespace tinyqmoe {
namespace {

// A model has a hundred tensors and a few dictionaries: a list serves.
NoDestroy<std::mutex> g_mutex_storage;
std::mutex& g_mutex = g_mutex_storage.value;
Dictionary* g_dictionaries = nullptr;

constexpr std::align_val_t kAlignment{64};

struct Expander {
  Dictionary* dictionary;

  void inner(const TreePath&, uint32_t) {}
  void leaf(const TreePath& path, uint32_t codeword) {
    std::memcpy(dictionary->phrases + uint64_t{codeword} * dictionary->shape.cap, path.child, path.depth);
    dictionary->lengths[codeword] = static_cast<uint8_t>(path.depth);
  }
};

bool matches(const Dictionary& d, const DictionaryShape& s, const uint8_t* section) {
  return d.shape.code_bits == s.code_bits && d.shape.cap == s.cap && d.shape.n_levels == s.n_levels &&
         d.shape.n_entries == s.n_entries && std::memcmp(d.section, section, s.section_bytes()) == 0;
}

void destroy(Dictionary* d) {
  ::operator delete(d->phrases, kAlignment);
  delete d;
}

tinyqmoe_status build(const DictionaryShape& shape, const uint8_t* section, Dictionary** out) {
  const uint64_t n_codes = uint64_t{1} << shape.code_bits;
  const uint64_t bytes = n_codes * (shape.cap + 1) + shape.section_bytes();
  Dictionary* d = new (std::nothrow) Dictionary{};
  if (d == nullptr) return TINYQMOE_OUT_OF_MEMORY;
  d->phrases = static_cast<uint8_t*>(::operator new(bytes, kAlignment, std::nothrow));
  if (d->phrases == nullptr) {
    delete d;
    return TINYQMOE_OUT_OF_MEMORY;
  }
  d->shape = shape;
  d->lengths = d->phrases + n_codes * shape.cap;
  d->section = d->lengths + n_codes;
  std::memset(d->phrases, 0, n_codes * shape.cap);
  std::memset(d->lengths, kInvalidLength, n_codes);
  std::memcpy(d->section, section, shape.section_bytes());
  Expander expander{d};
  const tinyqmoe_status status = walk_tree(shape, d->section, expander);
  if (status != TINYQMOE_OK) {
    destroy(d);
    return status;
  }
  *out = d;
  return TINYQMOE_OK;
}

}  // namespace

tinyqmoe_status acquire_dictionary(const DictionaryShape& shape, const uint8_t* section, const Dictionary** out) {
  const std::lock_guard<std::mutex> lock(g_mutex);
  for (Dictionary* d = g_dictionaries; d != nullptr; d = d->next) {
    if (!matches(*d, shape, section)) continue;
    ++d->references;
    *out = d;
    return TINYQMOE_OK;
  }
  Dictionary* built = nullptr;
  const tinyqmoe_status status = build(shape, section, &built);
  if (status != TINYQMOE_OK) return status;
  built->references = 1;
  built->next = g_dictionaries;
  g_dictionaries = built;
  *out = built;
  return TINYQMOE_OK;
}

void release_dictionary(const Dictionary* dictionary) {
  if (dictionary == nullptr) return;
  const std::lock_guard<std::mutex> lock(g_mutex);
  Dictionary** link = &g_dictionaries;
  while (*link != dictionary) link = &(*link)->next;
  Dictionary* found = *link;
  if (--found->references > 0) return;
  *link = found->next;
  destroy(found);
}

}  // namespace tinyqmoe
