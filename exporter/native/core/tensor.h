// An opened blob. The bytes are borrowed and may change under us: whatever is read from them again is checked again.
#ifndef TINYQMOE_CORE_TENSOR_H_
#define TINYQMOE_CORE_TENSOR_H_

#include <atomic>
#include <cstdint>
#include <memory>

#include "bytes.h"
#include "dictionary.h"
#include "tinyqmoe/tinyqmoe.h"

namespace tinyqmoe {

enum Codec : uint8_t { kRaw = 0, kLzw = 1, kBase3 = 2, kClipped = 3 /* of expanded copies only, see clipped.h */ };

constexpr uint32_t kTileRows = 32;
constexpr uint64_t kHeaderBytes = 64;

inline uint64_t n_tiles(uint32_t rows) { return (uint64_t{rows} + kTileRows - 1) / kTileRows; }

struct Entry;  // residency_state.h

// What the index of an lzw blob says of 32 rows, copied when it was checked.
struct Tile {
  uint32_t payload;   // offset of its first row in the payload
  uint32_t deltas;    // offset of its deltas in the index
  uint32_t shortest;  // bytes of its shortest row
  uint32_t width;     // bits of a delta: what a row is longer by
};

constexpr uint32_t kMaxWidth = 24;

// The delta of a row of a tile. Reads up to 8 bytes at it.
inline uint32_t delta_at(const uint8_t* deltas, uint32_t width, uint32_t row) {
  const uint32_t bit = row * width;
  return static_cast<uint32_t>(load<uint64_t>(deltas + bit / 8) >> (bit % 8)) & ((1u << width) - 1);
}

// Bytes of a row of a codec whose rows are equally long.
uint64_t packed_row_bytes(const tinyqmoe_info& info);

// Opens a blob, or an expanded copy of any form.
tinyqmoe_status open_copy(const void* bytes, uint64_t n_bytes, uint32_t flags, tinyqmoe_tensor** out);

// Checks shared by the decoder and the encoder (FORMAT.md section 2).
tinyqmoe_status check_codec(uint32_t codec, uint32_t code_bits, uint32_t cap);
tinyqmoe_status check_alphabet(const tinyqmoe_info& info, uint32_t core_first, uint32_t n_core);
tinyqmoe_status check_shape(uint32_t rows, uint32_t cols);
tinyqmoe_status check_entries(uint32_t codec, const DictionaryShape& shape);

}  // namespace tinyqmoe

struct tinyqmoe_tensor {
  tinyqmoe_info info;
  const uint8_t* index;         // codecs lzw and clipped only
  std::unique_ptr<tinyqmoe::Tile[]> tiles;  // codec lzw only
  const uint8_t* payload;
  uint64_t row_bytes;           // of every row; 0 for lzw
  // Of each kTileRows rows of a raw or base-3 blob, whether a product has checked them; see check_packed_rows.
  std::unique_ptr<std::atomic<bool>[]> checked;
  const tinyqmoe::Dictionary* dictionary;
  const uint8_t* bytes;         // of the whole blob, as far as info.total_bytes
  uint8_t header[tinyqmoe::kHeaderBytes];
  mutable tinyqmoe::Entry* entry;  // of the residency manager, from the first acquire on; its lock guards it
};

#endif  // TINYQMOE_CORE_TENSOR_H_
