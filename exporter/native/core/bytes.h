// Little-endian loads from unaligned memory, and rounding.
#ifndef TINYQMOE_CORE_BYTES_H_
#define TINYQMOE_CORE_BYTES_H_

#include <cstdint>
#include <cstring>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "TQLZ is read in place: a little-endian machine is needed"
#endif

namespace tinyqmoe {

template <typename T>
inline T load(const void* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

inline uint64_t round_up(uint64_t value, uint64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace tinyqmoe
#endif  // TINYQMOE_CORE_BYTES_H_
