// CRC-32 by what processors have for it: products without carries on x86, the instructions themselves on Arm.
#include "crc32.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define CLMUL __attribute__((target("pclmul,sse4.1")))

namespace tinyqmoe {
namespace {

// 128 bits are worth the same remainder `distance` bits further on when their halves are multiplied by
// x^(distance + 32) and x^(distance - 32) modulo the polynomial (Gopal et al., "Fast CRC Computation for Generic
// Polynomials Using PCLMULQDQ Instruction", Intel 2009); bit-reflected, and shifted by one.
CLMUL inline __m128i fold(__m128i value, __m128i by) {
  return _mm_xor_si128(_mm_clmulepi64_si128(value, by, 0x00), _mm_clmulepi64_si128(value, by, 0x11));
}

CLMUL inline __m128i load16(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }

CLMUL uint32_t steps_by_products(uint32_t state, const uint8_t* bytes, uint64_t n_bytes) {
  if (n_bytes == 0) return state;
  const __m128i by512 = _mm_set_epi64x(0x1c6e41596, 0x154442bd4);
  const __m128i by128 = _mm_set_epi64x(0x0ccaa009e, 0x1751997d0);
  __m128i lanes[4];
  for (int k = 0; k < 4; ++k) lanes[k] = load16(bytes + 16 * k);
  lanes[0] = _mm_xor_si128(lanes[0], _mm_cvtsi32_si128(static_cast<int>(state)));
  for (uint64_t at = kCrcStep; at < n_bytes; at += kCrcStep) {
    for (int k = 0; k < 4; ++k) lanes[k] = _mm_xor_si128(fold(lanes[k], by512), load16(bytes + at + 16 * k));
  }
  for (int k = 1; k < 4; ++k) lanes[k] = _mm_xor_si128(fold(lanes[k - 1], by128), lanes[k]);
  uint8_t rest[16];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(rest), lanes[3]);
  return crc_by_tables(0, rest, sizeof rest);
}

}  // namespace

CrcSteps crc_steps() { return has_carryless_product() ? steps_by_products : nullptr; }

}  // namespace tinyqmoe

#elif defined(__aarch64__)

#include "bytes.h"

#if defined(__clang__)
#define CRC __attribute__((target("crc")))
#else
#define CRC __attribute__((target("arch=armv8-a+crc")))
#endif

namespace tinyqmoe {
namespace {

CRC uint32_t steps_by_instruction(uint32_t state, const uint8_t* bytes, uint64_t n_bytes) {
  for (uint64_t at = 0; at < n_bytes; at += 8) {
    __asm__("crc32x %w0, %w0, %x1" : "+r"(state) : "r"(load<uint64_t>(bytes + at)));
  }
  return state;
}

}  // namespace

CrcSteps crc_steps() { return has_crc32() ? steps_by_instruction : nullptr; }

}  // namespace tinyqmoe

#else

tinyqmoe::CrcSteps tinyqmoe::crc_steps() { return nullptr; }

#endif
