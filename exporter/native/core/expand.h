// The expanded copy of a coded tensor: a raw blob of the same levels, or nibbles with exceptions (nibbles.h).
#ifndef TINYQMOE_CORE_EXPAND_H_
#define TINYQMOE_CORE_EXPAND_H_

#include <cstdint>

#include "tensor.h"

namespace tinyqmoe {

enum class Form : uint8_t { kRaw, kNibbles };

// The form that a coded tensor's header promises to be read fastest. Nibbles are only tried: see expand_to_memory.
Form form_of(const tinyqmoe_info& coded);

// Bits of a level in the smallest raw blob.
uint32_t raw_bits(uint32_t n_levels);

// Bytes of the blob of this form of a tensor with this header.
uint64_t form_bytes(const tinyqmoe_info& coded, Form form);

// Writes that blob, without its payload's CRC, to zeroed memory, by these threads or (null) the calling one. Copies go by
// the CRCs of the header, so the coded payload's is checked here. BUFFER_TOO_SMALL: nibbles have no room for the
// exceptions; the raw form serves.
tinyqmoe_status expand_to_memory(const tinyqmoe_tensor& coded, Form form, const tinyqmoe_threads* threads,
                                 uint8_t* blob);

// Writes it to the start of an empty file, rows through small buffers. *written tells a file that could not be written
// from a blob that could not be read.
tinyqmoe_status expand_to_file(const tinyqmoe_tensor& coded, Form form, const tinyqmoe_threads* threads, int file,
                               bool* written);

}  // namespace tinyqmoe
#endif  // TINYQMOE_CORE_EXPAND_H_
