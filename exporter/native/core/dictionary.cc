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
    for (uint32_t window = codeword.value; window < kCodewordWindows; window += 1u << codeword.bits) {
      d->first[window] = static_cast<uint16_t>(entry << 4 | codeword.bits);
    }
    // Phrases of escapes are in no entry, but a round may end with one, and must not write past the end of a row.
    d->most = std::max<uint32_t>(d->most, d->phrases[entry].length);
  }
}

// Puts the levels of a window and returns its control.
uint32_t put_window(const Dictionary& d, uint32_t window, uint32_t room, uint8_t levels[kMaxCap]) {
  uint32_t bits = 0;
  uint32_t n = 0;
  for (;;) {
    const uint32_t first = d.first[(window >> bits) & (kCodewordWindows - 1)];
    const Phrase& phrase = d.phrases[first >> 4];
    const bool whole = bits + (first & 15) <= window_bits(room);
    if (!whole || d.is_escape[first >> 4] || n + phrase.length > room) return n << kControlBits | bits;
    std::memcpy(levels + n, phrase.offsets, phrase.length);
    n += phrase.length;
    bits += first & 15;
  }
}

// The room with which a look-up finds most, by some of the windows.
uint32_t best_room(const Dictionary& d) {
  constexpr uint32_t kSamples = 256;
  uint32_t best = 0;
  uint32_t most = 0;
  for (const uint32_t room : {3u, 6u, 14u}) {
    if (room < d.shape.cap) continue;
    uint32_t n = 1;  // of the smallest that is allowed, even where samples hold nothing but escapes
    uint8_t levels[kMaxCap];
    for (uint32_t i = 0; i < kSamples; ++i) {
      const uint32_t window = (i * 0x9E3779B1u) >> (32 - window_bits(room));  // spread evenly
      n += put_window(d, window, room, levels) >> kControlBits;
    }
    if (n > most) best = room;
    most = std::max(most, n);
  }
  return best;
}

void fill_windows(Dictionary* d) {
  const uint32_t room = d->room, n_bytes = entry_bytes(room);
  for (uint32_t window = 0; window < kTableBytes / n_bytes; ++window) {
    uint8_t* const entry = d->windows + uint64_t{window} * n_bytes;
    uint8_t levels[kMaxCap] = {};
    const uint32_t control = put_window(*d, window, room, levels);
    std::memcpy(entry, levels, room);
    std::memcpy(entry + room, &control, n_bytes - room);
    d->most = std::max(d->most, control >> kControlBits);
  }
  d->most_inverse = (uint64_t{1} << 32) / d->most;
}

void destroy(Dictionary* d) {
  ::operator delete(d->windows, kAlignment);
  delete d;
}

// One block for all tables, of which every part starts on a multiple of its items' size.
tinyqmoe_status allocate(const DictionaryShape& shape, Dictionary** out) {
  const uint64_t bytes = kTableBytes + kCodewordWindows * sizeof(uint16_t) +
                         shape.n_entries * (sizeof(Phrase) + sizeof(bool)) + shape.section_bytes();
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
  d->first = reinterpret_cast<uint16_t*>(d->windows + kTableBytes);
  d->phrases = reinterpret_cast<Phrase*>(d->first + kCodewordWindows);
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
  d->room = best_room(*d);
  fill_windows(d);
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
  uint32_t used = 0;  // of kCodewordWindows
  for (uint32_t entry = 0; entry < (shape.n_entries + 1) / 2 * 2; ++entry) {
    const uint8_t bits = nibbles[entry / 2] >> (entry % 2 * 4) & 15;
    if (bits > kMaxCodeBits || (entry == shape.n_entries && bits != 0)) return TINYQMOE_BAD_DICTIONARY;
    if (entry == shape.n_entries) break;
    codewords[entry] = {0, bits};
    if (bits > 0) used += kCodewordWindows >> bits;
  }
  if (used != kCodewordWindows) return TINYQMOE_BAD_DICTIONARY;
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
