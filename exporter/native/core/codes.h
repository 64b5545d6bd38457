// Groups of kCodesPerCheck codewords, for the SIMD kernels.
#ifndef TINYQMOE_CORE_CODES_H_
#define TINYQMOE_CORE_CODES_H_

#include <type_traits>

#include "bytes.h"
#include "dictionary.h"

namespace tinyqmoe {

static_assert(kCodesPerCheck == 4, "CodeGroup is four codewords");

// Reads up to 8 bytes, where the group has 4, 6 or 8: the tail of a blob allows that.
template <uint32_t kBits>
struct CodeGroup {
  using Word = std::conditional_t<kBits == 8, uint32_t, uint64_t>;
  static constexpr uint32_t kBytes = kCodesPerCheck * kBits / 8;

  Word word;

  explicit CodeGroup(const uint8_t* codes) : word(load<Word>(codes)) {}
  uint32_t operator[](uint32_t i) const { return (word >> (i * kBits)) & ((1u << kBits) - 1); }
};

// What a walk over a row's codewords knows about their lengths.
struct RowLengths {
  uint32_t position = 0;
  uint32_t last = 0;
  uint32_t seen = 0;  // OR of all lengths: bit 6 tells of an invalid codeword

  void add(uint32_t length) {
    position += length;
    seen |= length;
    last = length;
  }
  bool fit(uint32_t cols) const {
    return position >= cols && position - last < cols && (seen & kInvalidLength) == 0;
  }
};

}  // namespace tinyqmoe
#endif  // TINYQMOE_CORE_CODES_H_
