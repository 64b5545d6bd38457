#include "sha256.h"

#include <cstring>

namespace tinyqmoe {

const uint32_t kSha256Rounds[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

namespace {

constexpr uint64_t kBlockBytes = 64;

uint32_t turned(uint32_t x, uint32_t n) { return x >> n | x << (32 - n); }

uint32_t big_endian(const uint8_t* p) {
  return uint32_t{p[0]} << 24 | uint32_t{p[1]} << 16 | uint32_t{p[2]} << 8 | uint32_t{p[3]};
}

void add_block(const uint8_t* block, uint32_t state[8]) {
  uint32_t w[64];
  for (uint32_t i = 0; i < 16; ++i) w[i] = big_endian(block + 4 * i);
  for (uint32_t i = 16; i < 64; ++i) {
    const uint32_t s0 = turned(w[i - 15], 7) ^ turned(w[i - 15], 18) ^ w[i - 15] >> 3;
    const uint32_t s1 = turned(w[i - 2], 17) ^ turned(w[i - 2], 19) ^ w[i - 2] >> 10;
    w[i] = w[i - 16] + s0 + w[i - 7] + s1;
  }
  uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
  uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
  for (uint32_t i = 0; i < 64; ++i) {
    const uint32_t s1 = turned(e, 6) ^ turned(e, 11) ^ turned(e, 25);
    const uint32_t s0 = turned(a, 2) ^ turned(a, 13) ^ turned(a, 22);
    const uint32_t t1 = h + s1 + ((e & f) ^ (~e & g)) + kSha256Rounds[i] + w[i];
    const uint32_t t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
    h = g, g = f, f = e, e = d + t1;
    d = c, c = b, b = a, a = t1 + t2;
  }
  const uint32_t added[8] = {a, b, c, d, e, f, g, h};
  for (uint32_t i = 0; i < 8; ++i) state[i] += added[i];
}

}  // namespace

void sha256_blocks(const uint8_t* blocks, uint64_t n_blocks, uint32_t state[8]) {
  for (; n_blocks > 0; --n_blocks, blocks += kBlockBytes) add_block(blocks, state);
}

void sha256_hex(const uint8_t* bytes, uint64_t n_bytes, char out[kSha256HexDigits]) {
  static const Sha256Blocks instructions = sha256_instructions();
  const Sha256Blocks add_blocks = instructions == nullptr ? sha256_blocks : instructions;
  // The same of the square roots of the first 8 primes.
  uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                       0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  const uint64_t n_whole = n_bytes / kBlockBytes * kBlockBytes;
  add_blocks(bytes, n_whole / kBlockBytes, state);
  uint8_t last[2 * kBlockBytes] = {};
  const uint64_t rest = n_bytes - n_whole;
  if (rest > 0) std::memcpy(last, bytes + n_whole, rest);
  last[rest] = 0x80;
  const uint64_t end = rest + 9 <= kBlockBytes ? kBlockBytes : 2 * kBlockBytes;
  for (uint32_t i = 0; i < 8; ++i) last[end - 1 - i] = static_cast<uint8_t>(8 * n_bytes >> 8 * i);
  add_blocks(last, end / kBlockBytes, state);
  for (uint32_t i = 0; i < kSha256HexDigits; ++i) out[i] = "0123456789abcdef"[state[i / 8] >> (28 - 4 * (i % 8)) & 15];
}

}  // namespace tinyqmoe
