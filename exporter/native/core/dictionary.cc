#include "dictionary.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "no_destroy.h"
#include "threads.h"

namespace tinyqmoe {
namespace {

// A model has some hundred tensors: a list serves.
NoDestroy<Mutex> g_mutex_storage;
Mutex& g_mutex = g_mutex_storage.value;
Dictionary* g_dictionaries = nullptr;

constexpr std::align_val_t kAlignment{64};

struct PhraseReader {
  Dictionary* dictionary;

  void inner(const TreePath&, uint32_t) {}
  void leaf(const TreePath& path, uint32_t entry) {
    const DictionaryShape& shape = dictionary->shape;
    Phrase& phrase = dictionary->phrases[entry];
    phrase.length = static_cast<uint8_t>(path.depth);
    for (uint32_t i = 0; i < std::min(path.depth, kMaxCap); ++i) {
      phrase.offsets[i] = static_cast<uint8_t>(shape.core_first + path.child[i]);
    }
    dictionary->is_escape[entry] = path.child[path.depth - 1] == shape.n_core;
  }
};

bool matches(const Dictionary& d, const DictionaryShape& s, const uint8_t* section) {
  return d.shape.cap == s.cap && d.shape.n_levels == s.n_levels && d.shape.core_first == s.core_first &&
         d.shape.n_core == s.n_core && d.shape.n_entries == s.n_entries &&
         std::memcmp(d.section, section, s.section_bytes()) == 0;
}

void fill_first(Dictionary* d, const Codeword* codewords) {
  for (uint32_t entry = 0; entry < d->shape.n_entries; ++entry) {
    const Codeword& codeword = codewords[entry];
    if (codeword.bits == 0) continue;
    for (uint32_t window = codeword.value; window < kWindows; window += 1u << codeword.bits) {
      d->first[window] = static_cast<uint16_t>(entry << 4 | codeword.bits);
    }
    // Phrases of escapes are in no entry, but a round may end with one, and must not write past the end of a row.
    d->most = std::max<uint32_t>(d->most, d->phrases[entry].length);
  }
}

void fill_window(Dictionary* d, uint32_t window) {
  const uint32_t cap = d->shape.cap;
  uint8_t* const levels = d->windows + uint64_t{window} * entry_bytes(cap);
  uint32_t bits = 0;
  uint32_t n = 0;
  for (;;) {
    const uint32_t first = d->first[window >> bits];
    const Phrase& phrase = d->phrases[first >> 4];
    const bool whole = bits + (first & 15) <= kMaxCodeBits;
    if (!whole || d->is_escape[first >> 4] || n + phrase.length > cap) break;
    std::memcpy(levels + n, phrase.offsets, phrase.length);
    n += phrase.length;
    bits += first & 15;
  }
  d->most = std::max(d->most, n);
  const uint16_t control = static_cast<uint16_t>(n << kControlBits | bits);
  std::memcpy(levels + cap, &control, entry_bytes(cap) - cap);
}

void destroy(Dictionary* d) {
  ::operator delete(d->windows, kAlignment);
  delete d;
}

// One block for all tables, of which every part starts on a multiple of its items' size.
tinyqmoe_status allocate(const DictionaryShape& shape, Dictionary** out) {
  const uint64_t window_bytes = uint64_t{kWindows} * entry_bytes(shape.cap);
  const uint64_t bytes = window_bytes + kWindows * sizeof(uint16_t) + shape.n_entries * (sizeof(Phrase) + sizeof(bool)) +
                         shape.section_bytes();
  Dictionary* d = new (std::nothrow) Dictionary{};
  if (d == nullptr) return TINYQMOE_OUT_OF_MEMORY;
  d->windows = static_cast<uint8_t*>(::operator new(bytes, kAlignment, std::nothrow));
  if (d->windows == nullptr) {
    delete d;
    return TINYQMOE_OUT_OF_MEMORY;
  }
  std::memset(d->windows, 0, bytes);
  d->shape = shape;
  d->most = 1;
  d->first = reinterpret_cast<uint16_t*>(d->windows + window_bytes);
  d->phrases = reinterpret_cast<Phrase*>(d->first + kWindows);
  d->is_escape = reinterpret_cast<bool*>(d->phrases + shape.n_entries);
  d->section = reinterpret_cast<uint8_t*>(d->is_escape + shape.n_entries);
  *out = d;
  return TINYQMOE_OK;
}

tinyqmoe_status build(const DictionaryShape& shape, const uint8_t* section, Dictionary** out) {
  Dictionary* d = nullptr;
  tinyqmoe_status status = allocate(shape, &d);
  if (status != TINYQMOE_OK) return status;
  std::memcpy(d->section, section, shape.section_bytes());
  PhraseReader reader{d};
  Codeword codewords[kMaxEntries];
  status = walk_tree(shape, d->section, reader);
  if (status == TINYQMOE_OK) status = read_codewords(shape, d->section, codewords);
  if (status != TINYQMOE_OK) {
    destroy(d);
    return status;
  }
  fill_first(d, codewords);
  for (uint32_t window = 0; window < kWindows; ++window) fill_window(d, window);
  *out = d;
  return TINYQMOE_OK;
}

uint16_t reversed(uint32_t value, uint32_t bits) {
  uint32_t mirror = 0;
  for (uint32_t i = 0; i < bits; ++i) mirror |= (value >> i & 1) << (bits - 1 - i);
  return static_cast<uint16_t>(mirror);
}

}  // namespace

tinyqmoe_status read_codewords(const DictionaryShape& shape, const uint8_t* section, Codeword codewords[kMaxEntries]) {
  const uint8_t* const nibbles = section + shape.tree_bytes();
  uint32_t used = 0;  // of kWindows
  for (uint32_t entry = 0; entry < (shape.n_entries + 1) / 2 * 2; ++entry) {
    const uint8_t bits = nibbles[entry / 2] >> (entry % 2 * 4) & 15;
    if (bits > kMaxCodeBits || (entry == shape.n_entries && bits != 0)) return TINYQMOE_BAD_DICTIONARY;
    if (entry == shape.n_entries) break;
    codewords[entry] = {0, bits};
    if (bits > 0) used += kWindows >> bits;
  }
  if (used != kWindows) return TINYQMOE_BAD_DICTIONARY;
  uint32_t value = 0;
  for (uint32_t bits = 1; bits <= kMaxCodeBits; ++bits, value <<= 1) {
    for (uint32_t entry = 0; entry < shape.n_entries; ++entry) {
      if (codewords[entry].bits == bits) codewords[entry].value = reversed(value++, bits);
    }
  }
  return TINYQMOE_OK;
}

tinyqmoe_status acquire_dictionary(const DictionaryShape& shape, const uint8_t* section, const Dictionary** out) {
  const std::lock_guard<Mutex> lock(g_mutex);
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
  const std::lock_guard<Mutex> lock(g_mutex);
  Dictionary** link = &g_dictionaries;
  while (*link != dictionary) link = &(*link)->next;
  Dictionary* found = *link;
  if (--found->references > 0) return;
  *link = found->next;
  destroy(found);
}

}  // namespace tinyqmoe
