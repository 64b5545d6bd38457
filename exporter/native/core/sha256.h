// SHA-256 (FIPS 180-4).
#ifndef TINYQMOE_CORE_SHA256_H_
#define TINYQMOE_CORE_SHA256_H_

#include <cstdint>

namespace tinyqmoe {

constexpr uint32_t kSha256HexDigits = 64;

// The digest of n bytes as lower-case hex digits, without a final zero.
void sha256_hex(const uint8_t* bytes, uint64_t n_bytes, char out[kSha256HexDigits]);

// The first 32 bits of the fractions of the cube roots of the first 64 primes.
extern const uint32_t kSha256Rounds[64];

// Goes on from a state over blocks of 64 bytes.
using Sha256Blocks = void (*)(const uint8_t* blocks, uint64_t n_blocks, uint32_t state[8]);

void sha256_blocks(const uint8_t* blocks, uint64_t n_blocks, uint32_t state[8]);  // on any processor

// By instructions of the processor; null where this machine (or this build) has none.
Sha256Blocks sha256_instructions();

bool has_sha256();  // of x86, with SSE4.1, or of Arm

}  // namespace tinyqmoe
#endif  // TINYQMOE_CORE_SHA256_H_
