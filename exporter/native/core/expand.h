// The expanded copy of a coded tensor: a raw blob of the same levels.
#ifndef TINYQMOE_CORE_EXPAND_H_
#define TINYQMOE_CORE_EXPAND_H_

#include <cstdint>

#include "tensor.h"

namespace tinyqmoe {

// Bits of a level in the smallest raw blob.
uint32_t raw_bits(uint32_t n_levels);

// Bytes of the raw blob of a tensor with this header.
uint64_t raw_blob_bytes(const tinyqmoe_info& info);

// Writes that blob, without its CRC, to zeroed memory, by these threads or (null) the calling one. Copies go by the CRCs
// of the header, so the coded payload's is checked here.
tinyqmoe_status expand_to_memory(const tinyqmoe_tensor& coded, const tinyqmoe_threads* threads, uint8_t* blob);

// Writes it to the start of an empty file, through small buffers. *written tells a file that could not be written
// from a blob that could not be read.
tinyqmoe_status expand_to_file(const tinyqmoe_tensor& coded, const tinyqmoe_threads* threads, int file, bool* written);

}  // namespace tinyqmoe
#endif  // TINYQMOE_CORE_EXPAND_H_
