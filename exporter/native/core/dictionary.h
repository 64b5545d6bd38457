// The tree of FORMAT.md section 3, walked; and its expansion into a table with one row a codeword.
#ifndef TINYQMOE_CORE_DICTIONARY_H_
#define TINYQMOE_CORE_DICTIONARY_H_

#include <cstdint>

#include "tinyqmoe/tinyqmoe.h"

namespace tinyqmoe {

constexpr uint32_t kMaxCap = 32;

// The length of codewords from n_entries up. No phrase has bit 6 in its length, so the OR of a row's lengths tells
// whether the row held such a codeword; small, because a kernel may step over it before it looks.
constexpr uint8_t kInvalidLength = 64;
// Kernels test their position once in kCodesPerCheck codewords: how far they may then be past the last column.
constexpr uint32_t kCodesPerCheck = 4;
constexpr uint32_t kOverrun = (kCodesPerCheck - 1) * kInvalidLength + kMaxCap;

struct DictionaryShape {
  uint32_t code_bits;
  uint32_t cap;
  uint32_t n_levels;
  uint32_t n_entries;

  uint32_t n_inner() const { return (n_entries - 1) / (n_levels - 1); }
  uint64_t section_bytes() const { return (uint64_t{n_entries} + n_inner() + 7) / 8; }
};

// Levels are stored as offsets from level_min, so tensors whose alphabets only differ in level_min share a table too.
struct Dictionary {
  DictionaryShape shape;
  uint8_t* phrases;       // [2^code_bits][cap], zero past a phrase's end; 64-byte aligned
  uint8_t* lengths;       // [2^code_bits]
  uint8_t* section;       // copy of the coded tree: the key under which tensors share this
  uint32_t references;
  Dictionary* next;
};

// Finds or builds the table. *out holds one reference.
tinyqmoe_status acquire_dictionary(const DictionaryShape& shape, const uint8_t* section, const Dictionary** out);
void release_dictionary(const Dictionary* dictionary);

// Where a walk stands: the path from the root to the node it meets.
struct TreePath {
  uint32_t depth;               // of the node; its phrase is child[0..depth)
  uint8_t child[kMaxCap];       // offsets from level_min
  uint32_t parent[kMaxCap];     // parent[d]: the inner node (numbered in pre-order) at depth d
};

// Visits every node but the root in pre-order, checking all that section 3 demands:
// visitor.inner(path, number) and visitor.leaf(path, codeword).
template <typename Visitor>
tinyqmoe_status walk_tree(const DictionaryShape& shape, const uint8_t* section, Visitor& visitor) {
  const uint64_t n_nodes = uint64_t{shape.n_entries} + shape.n_inner();
  const uint64_t n_bits = shape.section_bytes() * 8;
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
      if (path.depth == shape.cap || n_inner == shape.n_inner()) return TINYQMOE_BAD_DICTIONARY;
      visitor.inner(path, n_inner);
      path.child[path.depth] = 0;
      path.parent[path.depth++] = n_inner++;
      continue;
    }
    if (n_leaves == shape.n_entries) return TINYQMOE_BAD_DICTIONARY;
    visitor.leaf(path, n_leaves++);
    while (path.depth > 0 && path.child[path.depth - 1] == shape.n_levels - 1) --path.depth;
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
