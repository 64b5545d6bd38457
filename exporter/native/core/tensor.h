// An opened blob. The bytes are borrowed and may change under us: whatever is read from them again is checked again.
#ifndef TINYQMOE_CORE_TENSOR_H_
#define TINYQMOE_CORE_TENSOR_H_

#include <cstdint>

#include "dictionary.h"
#include "tinyqmoe/tinyqmoe.h"

namespace tinyqmoe {

enum Codec : uint8_t { kRaw = 0, kLzw = 1 };

constexpr uint32_t kTileRows = 32;
constexpr uint64_t kHeaderBytes = 64;

struct Entry;  // residency_state.h

// Checks shared by the decoder and the encoder (FORMAT.md section 2).
tinyqmoe_status check_codec(uint32_t codec, uint32_t code_bits, uint32_t cap);
tinyqmoe_status check_alphabet(uint32_t code_bits, int32_t level_min, uint32_t n_levels);
tinyqmoe_status check_shape(uint32_t rows, uint32_t cols);
tinyqmoe_status check_entries(uint32_t codec, uint32_t code_bits, uint32_t n_levels, uint32_t n_entries);

}  // namespace tinyqmoe

struct tinyqmoe_tensor {
  tinyqmoe_info info;
  const uint8_t* tile_offsets;  // u32 [n_tiles], codec lzw only
  const uint8_t* row_codes;     // u16 [rows], codec lzw only
  const uint8_t* payload;
  uint64_t row_bytes;           // of a raw row
  const tinyqmoe::Dictionary* dictionary;
  const uint8_t* bytes;         // of the whole blob, as far as info.total_bytes
  uint8_t header[tinyqmoe::kHeaderBytes];
  mutable tinyqmoe::Entry* entry;  // of the residency manager, from the first acquire on; its lock guards it
};

#endif  // TINYQMOE_CORE_TENSOR_H_
