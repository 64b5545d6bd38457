// Scales as they are stored, read in place: tinyqmoe_scale_type.
#ifndef TINYQMOE_CORE_SCALES_H_
#define TINYQMOE_CORE_SCALES_H_

#include <cstdint>
#include <cstring>

#include "tinyqmoe/tinyqmoe.h"

namespace tinyqmoe {

// From a ue6m10 code to the bits of its float32: exponent and mantissa move up in their order, and the bias of 47 becomes
// one of 127.
constexpr int kUe6m10Shift = 13;
constexpr uint32_t kUe6m10Bias = (127 - 47) << 23;

// The float32 of a ue6m10 code.
inline float widen_ue6m10(uint16_t code) {
  const uint32_t bits = code == 0 ? 0 : (uint32_t{code} << kUe6m10Shift) + kUe6m10Bias;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

struct Scales {
  const void* values;
  tinyqmoe_scale_type type;

  float operator[](uint64_t i) const {
    if (type == TINYQMOE_SCALES_FLOAT32) return static_cast<const float*>(values)[i];
    return widen_ue6m10(static_cast<const uint16_t*>(values)[i]);
  }

  // n of them from `begin` on, to every stride-th place of `out`.
  void put(uint64_t begin, uint32_t n, uint32_t stride, float* out) const {
    if (type == TINYQMOE_SCALES_FLOAT32) {
      const float* const from = static_cast<const float*>(values) + begin;
      for (uint32_t i = 0; i < n; ++i) out[i * stride] = from[i];
    } else {
      const uint16_t* const from = static_cast<const uint16_t*>(values) + begin;
      for (uint32_t i = 0; i < n; ++i) out[i * stride] = widen_ue6m10(from[i]);
    }
  }
};

inline bool is_scale_type(tinyqmoe_scale_type type) {
  return type == TINYQMOE_SCALES_FLOAT32 || type == TINYQMOE_SCALES_UE6M10;
}

}  // namespace tinyqmoe
#endif  // TINYQMOE_CORE_SCALES_H_
