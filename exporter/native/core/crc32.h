// Parts of CRC-32: that of two pieces, and the steps that some processors have instructions for. Each goes on from a
// state, the complement of a CRC, over n_bytes, a multiple of kCrcStep, and returns the next state.
#ifndef TINYQMOE_CORE_CRC32_H_
#define TINYQMOE_CORE_CRC32_H_

#include <cstdint>

namespace tinyqmoe {

constexpr uint64_t kCrcStep = 64;

using CrcSteps = uint32_t (*)(uint32_t state, const uint8_t* bytes, uint64_t n_bytes);

// Null where this machine (or this build) has none.
CrcSteps crc_steps();

// By tables, for any number of bytes.
uint32_t crc_by_tables(uint32_t state, const uint8_t* bytes, uint64_t n_bytes);

// The CRC of two pieces, the second of n_bytes, from those of each.
uint32_t crc_of_both(uint32_t first, uint32_t second, uint64_t n_bytes);

bool has_carryless_product();  // of x86, and SSE4.1
bool has_crc32();              // of Arm

}  // namespace tinyqmoe
#endif  // TINYQMOE_CORE_CRC32_H_
