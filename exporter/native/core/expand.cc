#include "expand.h"

#include <algorithm>
#include <memory>
#include <new>

#include "bytes.h"
#include "crc32.h"
#include "pages.h"
#include "rows.h"

namespace tinyqmoe {
namespace {

constexpr uint64_t kPartBytes = 1 << 17;  // of raw rows that a thread makes at a time; they stay in its second cache

uint64_t raw_row_bytes(const tinyqmoe_info& info) { return (uint64_t{info.cols} * raw_bits(info.n_levels) + 7) / 8; }

// Where raw rows go.
struct Destination {
  uint8_t* memory;  // of the first row; null: the file, behind the header
  int file;
};

// What is known of the rows of a part when they are written.
struct Part {
  tinyqmoe_status status;
  bool written;
  uint32_t coded_crc;
  uint32_t raw_crc;
  uint64_t coded_bytes;
  uint64_t raw_bytes;
};

// Expands a tensor in parts, which are whole tiles.
class Expansion {
 public:
  Expansion(const tinyqmoe_tensor& coded, const Destination& to)
      : coded_(coded),
        to_(to),
        bits_(raw_bits(coded.info.n_levels)),
        row_bytes_(raw_row_bytes(coded.info)),
        part_rows_(static_cast<uint32_t>(std::max(kPartBytes / row_bytes_ / kTileRows, uint64_t{1}) * kTileRows)),
        n_parts_((uint64_t{coded.info.rows} + part_rows_ - 1) / part_rows_),
        parts_(new (std::nothrow) Part[n_parts_]) {}

  // *written: false when the file could not be written, and nothing else is wrong.
  tinyqmoe_status run(const tinyqmoe_threads* threads, bool* written) {
    if (parts_ == nullptr) return TINYQMOE_OUT_OF_MEMORY;
    if (threads == nullptr) {
      for (uint64_t i = 0; i < n_parts_; ++i) parts_[i] = make_part(static_cast<uint32_t>(i));
    } else {
      threads->run(threads->host, n_parts_, make_one, this);
    }
    return put_together(written);
  }

  // After run (FORMAT.md section 2).
  void header(uint8_t out[kHeaderBytes]) const {
    const tinyqmoe_info& info = coded_.info;
    std::memset(out, 0, kHeaderBytes);
    std::memcpy(out, coded_.header, 8);
    out[8] = kRaw;
    out[9] = static_cast<uint8_t>(bits_);
    std::memcpy(out + 11, coded_.header + 11, 3);  // level_min, n_levels
    std::memcpy(out + 16, coded_.header + 16, 8);  // rows, cols
    store<uint64_t>(out + 32, kHeaderBytes);
    store<uint64_t>(out + 40, info.rows * row_bytes_);
    store<uint32_t>(out + 52, raw_crc_);
    store<uint32_t>(out + 60, tinyqmoe_crc32(0, out, 60));
  }

 private:
  template <typename T>
  static void store(uint8_t* p, T value) {
    std::memcpy(p, &value, sizeof value);
  }

  static void make_one(void* self, uint64_t i) {
    Expansion* const expansion = static_cast<Expansion*>(self);
    expansion->parts_[i] = expansion->make_part(static_cast<uint32_t>(i));
  }

  // Where a part's rows begin in the payload, of the part past the last one where they end.
  uint64_t coded_begin(uint32_t part) const {
    return part == n_parts_ ? coded_.info.payload_bytes : RowCursor(coded_, part * part_rows_).offset();
  }

  Part make_part(uint32_t i) const {
    const uint32_t begin = i * part_rows_, n = std::min(part_rows_, coded_.info.rows - begin);
    const uint64_t coded_at = coded_begin(i), raw_at = begin * row_bytes_;
    Part part = {TINYQMOE_OUT_OF_MEMORY, true, 0, 0, coded_begin(i + 1) - coded_at, n * row_bytes_};
    std::unique_ptr<uint8_t[]> buffer;
    if (to_.memory == nullptr) buffer.reset(new (std::nothrow) uint8_t[part.raw_bytes]);
    uint8_t* const out = to_.memory == nullptr ? buffer.get() : to_.memory + raw_at;
    if (out == nullptr) return part;
    part.coded_crc = tinyqmoe_crc32(0, coded_.payload + coded_at, part.coded_bytes);
    part.status = decode(begin, n, out);
    if (part.status != TINYQMOE_OK) return part;
    if (to_.memory != nullptr) return part;  // whose CRC nobody reads: only files are verified
    part.raw_crc = tinyqmoe_crc32(0, out, part.raw_bytes);
    part.written = write_at(to_.file, out, part.raw_bytes, kHeaderBytes + raw_at);
    return part;
  }

  tinyqmoe_status decode(uint32_t begin, uint32_t n_rows, uint8_t* out) const {
    const Kernels& kernels = *kernels_for(TINYQMOE_ISA_AUTO);
    RowCursor cursor(coded_, begin);
    if (bits_ == 8) return expand_rows(coded_, kernels, &cursor, n_rows, {0, out, row_bytes_});
    const uint32_t cols = static_cast<uint32_t>(round_up(coded_.info.cols, 8 / bits_));  // zeros fill the last byte
    const std::unique_ptr<uint8_t[]> offsets(new (std::nothrow) uint8_t[uint64_t{kDotRows} * cols]());
    if (offsets == nullptr) return TINYQMOE_OUT_OF_MEMORY;
    for (uint32_t r = 0; r < n_rows; r += kDotRows) {
      const uint32_t n = std::min(kDotRows, n_rows - r);
      const tinyqmoe_status status = expand_rows(coded_, kernels, &cursor, n, {0, offsets.get(), cols});
      if (status != TINYQMOE_OK) return status;
      for (uint32_t k = 0; k < n; ++k) {
        kernels.pack(offsets.get() + uint64_t{k} * cols, cols, bits_, out + uint64_t{r + k} * row_bytes_);
      }
    }
    return TINYQMOE_OK;
  }

  // What the parts say together. Of damage the payload's CRC tells first.
  tinyqmoe_status put_together(bool* written) {
    tinyqmoe_status status = TINYQMOE_OK;
    uint32_t coded_crc = 0;
    *written = true;
    for (uint64_t i = 0; i < n_parts_; ++i) {
      const Part& part = parts_[i];
      if (part.status == TINYQMOE_OUT_OF_MEMORY) return part.status;
      if (status == TINYQMOE_OK) status = part.status;
      *written = *written && part.written;
      coded_crc = crc_of_both(coded_crc, part.coded_crc, part.coded_bytes);
      raw_crc_ = crc_of_both(raw_crc_, part.raw_crc, part.raw_bytes);
    }
    return coded_crc == load<uint32_t>(coded_.header + 52) ? status : TINYQMOE_BAD_PAYLOAD_CRC;
  }

  const tinyqmoe_tensor& coded_;
  Destination to_;
  uint32_t bits_;
  uint64_t row_bytes_;
  uint32_t part_rows_;
  uint64_t n_parts_;
  std::unique_ptr<Part[]> parts_;
  uint32_t raw_crc_ = 0;
};

}  // namespace

uint32_t raw_bits(uint32_t n_levels) { return n_levels <= 4 ? 2 : n_levels <= 16 ? 4 : 8; }

uint64_t raw_blob_bytes(const tinyqmoe_info& info) {
  return round_up(kHeaderBytes + info.rows * raw_row_bytes(info) + 16, 64);
}

tinyqmoe_status expand_to_memory(const tinyqmoe_tensor& coded, const tinyqmoe_threads* threads, uint8_t* blob) {
  Expansion expansion(coded, {blob + kHeaderBytes, -1});
  bool written;
  const tinyqmoe_status status = expansion.run(threads, &written);
  if (status == TINYQMOE_OK) expansion.header(blob);
  return status;
}

tinyqmoe_status expand_to_file(const tinyqmoe_tensor& coded, const tinyqmoe_threads* threads, int file, bool* written) {
  Expansion expansion(coded, {nullptr, file});
  const tinyqmoe_status status = expansion.run(threads, written);
  if (status != TINYQMOE_OK || !*written) return status;
  const uint64_t end = kHeaderBytes + coded.info.rows * raw_row_bytes(coded.info);
  uint8_t header[kHeaderBytes];
  expansion.header(header);
  const uint8_t tail[16 + 63] = {};
  *written = write_at(file, tail, raw_blob_bytes(coded.info) - end, end) && write_at(file, header, sizeof header, 0);
  return TINYQMOE_OK;
}

}  // namespace tinyqmoe
