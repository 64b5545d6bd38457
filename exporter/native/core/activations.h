// How the activations of one token lie in the buffer of tinyqmoe_quantize_x16: int16 q, then its high plane, then its low
// plane, each padded_cols elements, zero past cols. Behind the high plane there may be a gap.
#ifndef TINYQMOE_CORE_ACTIVATIONS_H_
#define TINYQMOE_CORE_ACTIVATIONS_H_

#include "bytes.h"
#include "kernels.h"

namespace tinyqmoe {

// Kernels may run to the next multiple of 128: what a block of packed offsets of 2 bits holds.
inline uint64_t padded_cols(uint32_t cols) { return round_up(cols, 4 * kPackedBlock); }

// From the high plane to the low one. Products read both at the same column. Where those lie a multiple of 4096 bytes apart,
// or nearly, a Zen 4 takes one for the other in its first cache, and rows of 8,192 columns take 1.7 times as long. Short
// planes have no gap, which would cost small models memory.
inline uint64_t plane_stride(uint32_t cols) {
  const uint64_t padded = padded_cols(cols);
  return padded + (padded >= 4096 && padded % 4096 < 512 ? 512 : 0);
}

// 64 bytes more than is used, so that the tokens of a batch do not share the same few places of a cache.
inline uint64_t token_bytes(uint32_t cols) { return 3 * padded_cols(cols) + plane_stride(cols) + 64; }

inline X16 x16_at(const void* quantized, uint32_t cols, uint64_t token) {
  const int8_t* const bytes = static_cast<const int8_t*>(quantized) + token * token_bytes(cols);
  const int8_t* const high = bytes + 2 * padded_cols(cols);
  return {reinterpret_cast<const int16_t*>(bytes), high, high + plane_stride(cols)};
}

}  // namespace tinyqmoe
#endif  // TINYQMOE_CORE_ACTIVATIONS_H_
