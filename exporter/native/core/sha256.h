// SHA-256 (FIPS 180-4).
#ifndef TINYQMOE_CORE_SHA256_H_
#define TINYQMOE_CORE_SHA256_H_

#include <cstdint>

namespace tinyqmoe {

constexpr uint32_t kSha256HexDigits = 64;

// The digest of n bytes as lower-case hex digits, without a final zero.
void sha256_hex(const uint8_t* bytes, uint64_t n_bytes, char out[kSha256HexDigits]);

}  // namespace tinyqmoe
#endif  // TINYQMOE_CORE_SHA256_H_
