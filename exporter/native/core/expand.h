// The expanded copy of a coded tensor: a raw blob of the same levels, or clipped levels and exceptions (clipped.h).
#ifndef TINYQMOE_CORE_EXPAND_H_
#define TINYQMOE_CORE_EXPAND_H_

#include <cstdint>

#include "tensor.h"

namespace tinyqmoe {

// kRaw, or of clipped levels their bits.
enum class Form : uint8_t { kRaw = 0, kClipped4 = 4, kClipped5 = 5, kClipped6 = 6 };

constexpr Form kClippedForms[] = {Form::kClipped4, Form::kClipped5, Form::kClipped6};

// Of a form of clipped levels.
constexpr uint32_t clipped_bits(Form form) { return static_cast<uint32_t>(form); }

// The form that a coded tensor's header promises to be read fastest. Clipped levels are only tried: see expand_to_memory.
Form form_of(const tinyqmoe_info& coded);

// The form to try where this one has no room.
Form wider_form(const tinyqmoe_info& coded, Form form);

// Bits of a level in the smallest raw blob.
uint32_t raw_bits(uint32_t n_levels);

// Bytes of the blob of this form of a tensor with this header.
uint64_t form_bytes(const tinyqmoe_info& coded, Form form);

// Writes that blob, without its payload's CRC, to zeroed memory, by these threads or (null) the calling one. Copies go by
// the CRCs of the header, so the coded payload's is checked here. BUFFER_TOO_SMALL: the form has no room for the
// exceptions; a wider one serves.
tinyqmoe_status expand_to_memory(const tinyqmoe_tensor& coded, Form form, const tinyqmoe_threads* threads,
                                 uint8_t* blob);

// Writes it to the start of an empty file, rows through small buffers. *written tells a file that could not be written
// from a blob that could not be read.
tinyqmoe_status expand_to_file(const tinyqmoe_tensor& coded, Form form, const tinyqmoe_threads* threads, int file,
                               bool* written);

}  // namespace tinyqmoe
#endif  // TINYQMOE_CORE_EXPAND_H_
