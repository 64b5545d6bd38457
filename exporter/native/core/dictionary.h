// The dictionary of FORMAT.md section 3: the tree, walked; and the tables that decode codewords.
#ifndef TINYQMOE_CORE_DICTIONARY_H_
#define TINYQMOE_CORE_DICTIONARY_H_

#include <cstdint>

#include "bytes.h"
#include "tinyqmoe/tinyqmoe.h"

namespace tinyqmoe {

constexpr uint32_t kMaxCap = 14;
constexpr uint32_t kMaxEntries = 256;
constexpr uint32_t kMaxCodeBits = 12;
constexpr uint32_t kCodewordWindows = 1u << kMaxCodeBits;  // what the next kMaxCodeBits bits of a row can be

struct DictionaryShape {
  uint32_t cap;
  uint32_t n_levels;    // of the alphabet
  uint32_t core_first;  // offset from level_min of the first level of the core
  uint32_t n_core;
  uint32_t n_entries;

  bool has_escape() const { return n_core < n_levels; }
  uint32_t n_children() const { return n_core + has_escape(); }
  uint32_t n_inner() const { return (n_entries - 1) / (n_children() - 1); }
  uint64_t tree_bytes() const { return (uint64_t{n_entries} + n_inner() + 7) / 8; }
  uint64_t section_bytes() const { return tree_bytes() + (n_entries + 1) / 2; }
};

// A codeword: `bits` bits of `value`, whose lowest is the first of the stream. 0 bits: an unused entry.
struct Codeword {
  uint16_t value;
  uint8_t bits;
};

// What a codeword stands for. Levels are stored as offsets from level_min.
struct Phrase {
  uint8_t offsets[kMaxCap];
  uint8_t length;  // of an escape phrase: with the level that follows the codeword
};

// What a look-up finds: levels, for 3, 6 or 14 of which an entry has room, and last in the entry its control, which says
// how many they are and how many bits they took. Shifts take a control as it is, since they look at its lowest
// kControlBits bits only.
constexpr uint32_t kControlBits = 6;
constexpr uint32_t entry_bytes(uint32_t room) { return room == 3 ? 4 : room == 6 ? 8 : 16; }
inline uint64_t control_of(const uint8_t* entry, uint32_t room) {
  return room == 3 ? uint64_t{entry[3]} : uint64_t{load<uint16_t>(entry + room)};
}

// Bits of a row that a look-up sees: as many as make a table that a first cache holds, whatever the room.
constexpr uint32_t kTableBytes = 1 << 15;
constexpr uint32_t window_bits(uint32_t room) { return room == 3 ? 13 : room == 6 ? 12 : 11; }
static_assert(entry_bytes(3) << window_bits(3) == kTableBytes && entry_bytes(14) << window_bits(14) == kTableBytes);

struct Dictionary {
  DictionaryShape shape;
  uint32_t room;      // of an entry, at least cap: that with which a look-up finds most
  // Of every window: the phrases of the codewords that are whole in it, as many as there is room for. Control 0: the first
  // codeword is an escape, or too long. [1 << window_bits][entry_bytes], 64-byte aligned.
  uint8_t* windows;
  uint32_t most;      // levels that a look-up or an escape puts, at least 1
  uint64_t most_inverse;  // 2^32 / most, rounded down
  uint16_t* first;    // of every kMaxCodeBits bits: their first codeword, entry << 4 | bits
  Phrase* phrases;    // [n_entries]
  bool* is_escape;    // [n_entries]
  uint8_t* section;   // copy of the coded dictionary: the key under which tensors share this
  uint32_t references;
  Dictionary* next;
};

// Finds or builds the tables. *out holds one reference.
tinyqmoe_status acquire_dictionary(const DictionaryShape& shape, const uint8_t* section, const Dictionary** out);
void release_dictionary(const Dictionary* dictionary);

// The canonical codewords of the lengths that follow the tree. BAD_DICTIONARY unless they form a complete code.
tinyqmoe_status read_codewords(const DictionaryShape& shape, const uint8_t* section, Codeword codewords[kMaxEntries]);

// Where a walk stands: the path from the root to the node it meets.
struct TreePath {
  uint32_t depth;               // of the node; its phrase is child[0..depth)
  uint8_t child[kMaxCap];       // not above n_core
  uint32_t parent[kMaxCap];     // parent[d]: the inner node (numbered in pre-order) at depth d
};

// Visits every node but the root in pre-order, checking all that section 3 demands of the tree:
// visitor.inner(path, number) and visitor.leaf(path, entry).
template <typename Visitor>
tinyqmoe_status walk_tree(const DictionaryShape& shape, const uint8_t* section, Visitor& visitor) {
  const uint64_t n_nodes = uint64_t{shape.n_entries} + shape.n_inner();
  const uint64_t n_bits = shape.tree_bytes() * 8;
  uint64_t bit = 0;
  const auto next_bit = [&] {
    const bool value = (section[bit / 8] >> (bit % 8)) & 1;
    ++bit;
    return value;
  };
  if (!next_bit()) return TINYQMOE_BAD_DICTIONARY;
  TreePath path{};
  path.depth = 1;
  uint32_t n_inner = 1;
  uint32_t n_leaves = 0;
  while (path.depth > 0) {
    if (bit == n_nodes) return TINYQMOE_BAD_DICTIONARY;
    if (next_bit()) {
      const bool after_escape = path.child[path.depth - 1] == shape.n_core;
      if (after_escape || path.depth == shape.cap || n_inner == shape.n_inner()) return TINYQMOE_BAD_DICTIONARY;
      visitor.inner(path, n_inner);
      path.child[path.depth] = 0;
      path.parent[path.depth++] = n_inner++;
      continue;
    }
    if (n_leaves == shape.n_entries) return TINYQMOE_BAD_DICTIONARY;
    visitor.leaf(path, n_leaves++);
    while (path.depth > 0 && path.child[path.depth - 1] == shape.n_children() - 1) --path.depth;
    if (path.depth > 0) ++path.child[path.depth - 1];
  }
  if (bit != n_nodes) return TINYQMOE_BAD_DICTIONARY;
  while (bit < n_bits) {
    if (next_bit()) return TINYQMOE_BAD_DICTIONARY;
  }
  return TINYQMOE_OK;
}

}  // namespace tinyqmoe
#endif  // TINYQMOE_CORE_DICTIONARY_H_
