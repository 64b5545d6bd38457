#include "expand.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <new>

#include "bytes.h"
#include "rows.h"

namespace tinyqmoe {
namespace {

constexpr uint64_t kFileBufferBytes = 1 << 20;

uint64_t raw_row_bytes(const tinyqmoe_info& info) { return (uint64_t{info.cols} * raw_bits(info.n_levels) + 7) / 8; }

// Offsets of 2 or 4 bits, packed from the lowest. n is a multiple of what a byte holds. What an integer holds of them is
// moved together in steps that compilers make vectors of.
void pack(const uint8_t* offsets, uint32_t n, uint32_t bits, uint8_t* out) {
  if (bits == 2) {
    for (uint32_t i = 0; i < n / 4; ++i) {
      const uint32_t four = load<uint32_t>(offsets + 4 * i);
      const uint32_t pairs = four | four >> 6;
      out[i] = static_cast<uint8_t>((pairs & 15) | pairs >> 12);
    }
  } else {
    for (uint32_t i = 0; i < n / 2; ++i) {
      const uint16_t two = load<uint16_t>(offsets + 2 * i);
      out[i] = static_cast<uint8_t>(two | two >> 4);
    }
  }
}

// Reads a coded tensor from its first row on and writes raw rows.
class Packer {
 public:
  explicit Packer(const tinyqmoe_tensor& coded)
      : coded_(coded),
        bits_(raw_bits(coded.info.n_levels)),
        n_(static_cast<uint32_t>(round_up(coded.info.cols, 8 / bits_))),
        offsets_(new (std::nothrow) uint8_t[uint64_t{kDotRows} * n_]()),
        cursor_(coded, 0) {}

  tinyqmoe_status begin() const {
    if (offsets_ == nullptr) return TINYQMOE_OUT_OF_MEMORY;
    const uint32_t crc = tinyqmoe_crc32(0, coded_.payload, coded_.info.payload_bytes);
    return crc == load<uint32_t>(coded_.header + 52) ? TINYQMOE_OK : TINYQMOE_BAD_PAYLOAD_CRC;
  }

  tinyqmoe_status rows(uint32_t n_rows, uint8_t* out) {
    const Kernels& kernels = *kernels_for(TINYQMOE_ISA_AUTO);
    const uint64_t row_bytes = raw_row_bytes(coded_.info);
    for (uint32_t r = 0; r < n_rows; r += kDotRows) {
      const uint32_t n = std::min(kDotRows, n_rows - r);
      uint8_t* const packed = out + r * row_bytes;
      uint8_t* const offsets = bits_ == 8 ? packed : offsets_.get();
      const tinyqmoe_status status = expand_rows(coded_, kernels, &cursor_, n, {0, offsets, n_});
      if (status != TINYQMOE_OK) return status;
      for (uint32_t k = 0; k < n && bits_ < 8; ++k) pack(offsets + uint64_t{k} * n_, n_, bits_, packed + k * row_bytes);
    }
    crc_ = tinyqmoe_crc32(crc_, out, n_rows * row_bytes);
    return TINYQMOE_OK;
  }

  // After the last row (FORMAT.md section 2).
  void header(uint8_t out[kHeaderBytes]) const {
    const tinyqmoe_info& info = coded_.info;
    std::memset(out, 0, kHeaderBytes);
    std::memcpy(out, coded_.header, 8);
    out[8] = kRaw;
    out[9] = static_cast<uint8_t>(bits_);
    std::memcpy(out + 11, coded_.header + 11, 3);  // level_min, n_levels
    std::memcpy(out + 16, coded_.header + 16, 8);  // rows, cols
    store<uint64_t>(out + 32, kHeaderBytes);
    store<uint64_t>(out + 40, info.rows * raw_row_bytes(info));
    store<uint32_t>(out + 52, crc_);
    store<uint32_t>(out + 60, tinyqmoe_crc32(0, out, 60));
  }

 private:
  template <typename T>
  static void store(uint8_t* p, T value) {
    std::memcpy(p, &value, sizeof value);
  }

  const tinyqmoe_tensor& coded_;
  uint32_t bits_;
  uint32_t n_;  // offsets of a row with those, zeros, that fill its last byte
  std::unique_ptr<uint8_t[]> offsets_;  // [kDotRows][n_]
  RowCursor cursor_;
  uint32_t crc_ = 0;
};

}  // namespace

uint32_t raw_bits(uint32_t n_levels) { return n_levels <= 4 ? 2 : n_levels <= 16 ? 4 : 8; }

uint64_t raw_blob_bytes(const tinyqmoe_info& info) {
  return round_up(kHeaderBytes + info.rows * raw_row_bytes(info) + 16, 64);
}

tinyqmoe_status expand_to_memory(const tinyqmoe_tensor& coded, uint8_t* blob) {
  Packer packer(coded);
  tinyqmoe_status status = packer.begin();
  if (status == TINYQMOE_OK) status = packer.rows(coded.info.rows, blob + kHeaderBytes);
  if (status == TINYQMOE_OK) packer.header(blob);
  return status;
}

bool write_at(int file, const void* bytes, uint64_t n, uint64_t offset) {
  const uint8_t* p = static_cast<const uint8_t*>(bytes);
  while (n > 0) {
    const ssize_t done = pwrite(file, p, n, static_cast<off_t>(offset));
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) return false;
    p += done;
    n -= static_cast<uint64_t>(done);
    offset += static_cast<uint64_t>(done);
  }
  return true;
}

tinyqmoe_status expand_to_file(const tinyqmoe_tensor& coded, int file, bool* written) {
  const uint64_t row_bytes = raw_row_bytes(coded.info);
  const uint32_t rows_a_time = static_cast<uint32_t>(std::max<uint64_t>(1, kFileBufferBytes / row_bytes));
  const std::unique_ptr<uint8_t[]> buffer(new (std::nothrow) uint8_t[rows_a_time * row_bytes]);
  if (buffer == nullptr) return TINYQMOE_OUT_OF_MEMORY;
  Packer packer(coded);
  tinyqmoe_status status = packer.begin();
  uint64_t offset = kHeaderBytes;
  *written = true;
  for (uint32_t row = 0; status == TINYQMOE_OK && *written && row < coded.info.rows; row += rows_a_time) {
    const uint32_t n = std::min(rows_a_time, coded.info.rows - row);
    status = packer.rows(n, buffer.get());
    if (status == TINYQMOE_OK) *written = write_at(file, buffer.get(), n * row_bytes, offset);
    offset += n * row_bytes;
  }
  if (status != TINYQMOE_OK || !*written) return status;
  uint8_t header[kHeaderBytes];
  packer.header(header);
  const uint8_t tail[16 + 63] = {};
  *written = write_at(file, tail, raw_blob_bytes(coded.info) - offset, offset) &&
             write_at(file, header, sizeof header, 0);
  return TINYQMOE_OK;
}

}  // namespace tinyqmoe
