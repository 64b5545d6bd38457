// IEEE half precision by integers: what F16C and NEON compute, to the bit.
#ifndef TINYQMOE_LLM_HALF_H_
#define TINYQMOE_LLM_HALF_H_

#include <cstdint>
#include <cstring>

namespace tinyqmoe {

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Rounds to nearest even; from 65520 on infinite; a NaN becomes quiet and keeps its upper bits.
inline uint16_t half_of(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t size = bits & 0x7FFFFFFFu;
  uint32_t half;
  if (size > 0x7F800000u) {
    half = 0x7E00u | (size >> 13 & 0x1FFu);
  } else if (size >= 0x47800000u) {
    half = 0x7C00u;
  } else if (size < 0x38800000u) {
    half = bits_of(float_of(size) + 0.5f) - bits_of(0.5f);  // the addition rounds where a subnormal half ends
  } else {
    half = (size + 0xC8000FFFu + (size >> 13 & 1u)) >> 13;  // another exponent, and half to even
  }
  return static_cast<uint16_t>(sign | half);
}

inline float float_of_half(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16;
  const uint32_t size = (half & 0x7FFFu) << 13;
  if (size >= 0x0F800000u) {
    const uint32_t quiet = size > 0x0F800000u ? 0x00400000u : 0u;
    return float_of(sign | (size + 0x70000000u) | quiet);
  }
  if (size < 0x00800000u) {  // the subtraction normalises a subnormal
    return float_of(sign | bits_of(float_of(size + 0x38800000u) - 0x1p-14f));
  }
  return float_of(sign | (size + 0x38000000u));
}

}  // namespace tinyqmoe
#endif  // TINYQMOE_LLM_HALF_H_
