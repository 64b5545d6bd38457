// How the activations of one token lie in the buffer of tinyqmoe_quantize_x16: int16 q, then its high plane, then its low
// plane, each padded_cols elements, zero past cols.
#ifndef TINYQMOE_CORE_ACTIVATIONS_H_
#define TINYQMOE_CORE_ACTIVATIONS_H_

#include "bytes.h"
#include "kernels.h"

namespace tinyqmoe {

// Kernels may run to the next multiple of 128: what a block of packed offsets of 2 bits holds.
inline uint64_t padded_cols(uint32_t cols) { return round_up(cols, 4 * kPackedBlock); }

inline X16 x16_at(const void* quantized, uint32_t cols, uint64_t token) {
  const uint64_t padded = padded_cols(cols);
  const int8_t* const bytes = static_cast<const int8_t*>(quantized) + token * tinyqmoe_quantized_bytes(cols);
  return {reinterpret_cast<const int16_t*>(bytes), bytes + 2 * padded, bytes + 3 * padded};
}

}  // namespace tinyqmoe
#endif  // TINYQMOE_CORE_ACTIVATIONS_H_
