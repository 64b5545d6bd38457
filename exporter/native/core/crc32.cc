// zlib's CRC-32: by instructions where there are any, the rest eight bytes a step ("slicing by 8").
#include "crc32.h"

#include "bytes.h"
#include "tinyqmoe/tinyqmoe.h"

namespace {

// Polynomials modulo that of CRC-32, the highest bit their constant term.
constexpr uint32_t times_x(uint32_t p) { return (p >> 1) ^ ((p & 1) ? 0xEDB88320u : 0u); }

uint32_t product(uint32_t a, uint32_t b) {
  uint32_t sum = 0;
  for (; a != 0; a <<= 1, b = times_x(b)) sum ^= (a >> 31) != 0 ? b : 0;
  return sum;
}

struct Tables {
  uint32_t t[8][256];
};

constexpr Tables make_tables() {
  Tables tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = times_x(crc);
    tables.t[0][byte] = crc;
  }
  for (int slice = 1; slice < 8; ++slice) {
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const uint32_t before = tables.t[slice - 1][byte];
      tables.t[slice][byte] = (before >> 8) ^ tables.t[0][before & 0xFF];
    }
  }
  return tables;
}

constexpr Tables kTables = make_tables();

}  // namespace

uint32_t tinyqmoe::crc_by_tables(uint32_t crc, const uint8_t* p, uint64_t n_bytes) {
  const auto& t = kTables.t;
  for (; n_bytes >= 8; n_bytes -= 8, p += 8) {
    const uint32_t a = load<uint32_t>(p) ^ crc;
    const uint32_t b = load<uint32_t>(p + 4);
    crc = t[7][a & 0xFF] ^ t[6][(a >> 8) & 0xFF] ^ t[5][(a >> 16) & 0xFF] ^ t[4][a >> 24] ^ t[3][b & 0xFF] ^
          t[2][(b >> 8) & 0xFF] ^ t[1][(b >> 16) & 0xFF] ^ t[0][b >> 24];
  }
  for (; n_bytes > 0; --n_bytes, ++p) crc = (crc >> 8) ^ t[0][(crc ^ *p) & 0xFF];
  return crc;
}

// n_bytes of zeros behind the first piece multiply its CRC by x^(8 n_bytes).
uint32_t tinyqmoe::crc_of_both(uint32_t first, uint32_t second, uint64_t n_bytes) {
  uint32_t square = 1u << 23;  // x^8
  for (; n_bytes > 0; n_bytes >>= 1, square = product(square, square)) {
    if ((n_bytes & 1) != 0) first = product(first, square);
  }
  return first ^ second;
}

extern "C" uint32_t tinyqmoe_crc32(uint32_t crc, const void* bytes, uint64_t n_bytes) {
  static const tinyqmoe::CrcSteps steps = tinyqmoe::crc_steps();
  const uint8_t* const p = static_cast<const uint8_t*>(bytes);
  const uint64_t whole = steps == nullptr ? 0 : n_bytes / tinyqmoe::kCrcStep * tinyqmoe::kCrcStep;
  const uint32_t state = whole == 0 ? ~crc : steps(~crc, p, whole);
  return ~tinyqmoe::crc_by_tables(state, p + whole, n_bytes - whole);
}
