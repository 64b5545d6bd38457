#include "expand.h"

#include <algorithm>
#include <memory>
#include <new>

#include "bytes.h"
#include "clipped.h"
#include "crc32.h"
#include "pages.h"
#include "rows.h"

namespace tinyqmoe {
namespace {

constexpr uint64_t kPartBytes = 1 << 17;  // of rows that a thread makes at a time; they stay in its second cache

// The blob of a form.
struct Shape {
  Codec codec;
  uint32_t bits;
  uint64_t row_bytes;
  uint64_t index_bytes;
  uint64_t payload;  // its offset
  uint64_t payload_end;
  uint64_t total;

  Shape(const tinyqmoe_info& info, Form form)
      : codec(form == Form::kRaw ? kRaw : kClipped),
        bits(form == Form::kRaw ? raw_bits(info.n_levels) : clipped_bits(form)),
        row_bytes(form == Form::kRaw ? (uint64_t{info.cols} * bits + 7) / 8 : clipped_row_bytes(info.cols, bits)),
        index_bytes(form == Form::kRaw ? 0 : clipped_index_bytes(info)),
        payload(round_up(kHeaderBytes + index_bytes, 64)),
        payload_end(payload + info.rows * row_bytes),
        total(round_up(payload_end + 16, 64)) {}
};

// Where a blob goes.
struct Destination {
  uint8_t* memory;  // null: the file
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
  uint64_t n_exceptions;  // blocks of them
  std::unique_ptr<uint8_t[]> exceptions;
};

// Expands a tensor in parts, which are whole tiles.
class Expansion {
 public:
  Expansion(const tinyqmoe_tensor& coded, Form form, const Destination& to)
      : coded_(coded),
        to_(to),
        shape_(coded.info, form),
        part_rows_(static_cast<uint32_t>(std::max(kPartBytes / shape_.row_bytes / kTileRows, uint64_t{1}) * kTileRows)),
        n_parts_((uint64_t{coded.info.rows} + part_rows_ - 1) / part_rows_),
        parts_(new (std::nothrow) Part[n_parts_]) {
    if (to.memory == nullptr) index_of_file_.reset(new (std::nothrow) uint8_t[shape_.payload - kHeaderBytes]());
    index_ = to.memory == nullptr ? index_of_file_.get() : to.memory + kHeaderBytes;
  }

  // *written: false when the file could not be written, and nothing else is wrong.
  tinyqmoe_status run(const tinyqmoe_threads* threads, bool* written) {
    if (parts_ == nullptr || index_ == nullptr) return TINYQMOE_OUT_OF_MEMORY;
    if (threads == nullptr) {
      for (uint64_t i = 0; i < n_parts_; ++i) parts_[i] = make_part(static_cast<uint32_t>(i));
    } else {
      threads->run(threads->host, n_parts_, make_one, this);
    }
    return put_together(written);
  }

  // After run: all of a file but the payload. False: it could not be written.
  bool finish_file() const {
    uint8_t header[kHeaderBytes];
    put_header(header);
    const uint8_t tail[16 + 63] = {};
    return write_at(to_.file, tail, shape_.total - shape_.payload_end, shape_.payload_end) &&
           write_at(to_.file, index_, shape_.payload - kHeaderBytes, kHeaderBytes) &&
           write_at(to_.file, header, sizeof header, 0);
  }

  // After run (FORMAT.md section 2).
  void put_header(uint8_t out[kHeaderBytes]) const {
    std::memset(out, 0, kHeaderBytes);
    std::memcpy(out, coded_.header, 8);
    out[8] = shape_.codec;
    out[9] = static_cast<uint8_t>(shape_.bits);
    std::memcpy(out + 11, coded_.header + 11, 3);  // level_min, n_levels
    std::memcpy(out + 16, coded_.header + 16, 8);  // rows, cols
    store<uint64_t>(out + 32, shape_.payload);
    store<uint64_t>(out + 40, shape_.payload_end - shape_.payload);
    store<uint32_t>(out + 48, tinyqmoe_crc32(0, index_, shape_.payload - kHeaderBytes));
    store<uint32_t>(out + 52, raw_crc_);
    store<uint32_t>(out + 56, static_cast<uint32_t>(shape_.index_bytes));
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
    const uint64_t coded_at = coded_begin(i), at = shape_.payload + begin * shape_.row_bytes;
    Part part = {TINYQMOE_OUT_OF_MEMORY, true, 0, 0, coded_begin(i + 1) - coded_at, n * shape_.row_bytes, 0, nullptr};
    std::unique_ptr<uint8_t[]> buffer;
    if (to_.memory == nullptr) buffer.reset(new (std::nothrow) uint8_t[part.raw_bytes]);
    uint8_t* const out = to_.memory == nullptr ? buffer.get() : to_.memory + at;
    if (out == nullptr) return part;
    part.coded_crc = tinyqmoe_crc32(0, coded_.payload + coded_at, part.coded_bytes);
    part.status = decode(begin, n, out, &part);
    if (part.status != TINYQMOE_OK) return part;
    if (to_.memory != nullptr) return part;  // whose CRC nobody reads: only files are verified
    part.raw_crc = tinyqmoe_crc32(0, out, part.raw_bytes);
    part.written = write_at(to_.file, out, part.raw_bytes, at);
    return part;
  }

  tinyqmoe_status decode(uint32_t begin, uint32_t n_rows, uint8_t* out, Part* part) const {
    if (shape_.codec == kClipped) return clip(begin, n_rows, out, part);
    if (shape_.bits < 8) return pack(begin, n_rows, out);
    RowCursor cursor(coded_, begin);
    return expand_rows(coded_, *kernels_for(TINYQMOE_ISA_AUTO), &cursor, n_rows, {0, out, shape_.row_bytes});
  }

  // Rows of 2 or 4 bits.
  tinyqmoe_status pack(uint32_t begin, uint32_t n_rows, uint8_t* out) const {
    const Kernels& kernels = *kernels_for(TINYQMOE_ISA_AUTO);
    const uint32_t cols = static_cast<uint32_t>(round_up(coded_.info.cols, 8 / shape_.bits));  // zeros fill the last byte
    return for_rows(begin, n_rows, cols, [&](uint32_t r, const uint8_t* offsets) {
      kernels.pack(offsets, cols, shape_.bits, out + uint64_t{r} * shape_.row_bytes);
      return true;
    });
  }

  // Clipped rows, and the part's exceptions.
  tinyqmoe_status clip(uint32_t begin, uint32_t n_rows, uint8_t* out, Part* part) const {
    const uint64_t most = n_rows * ((uint64_t{coded_.info.cols} + kExceptions - 1) / kExceptions);
    const uint64_t room = std::min(exception_room(coded_.info), most);
    const std::unique_ptr<uint8_t[]> found(new (std::nothrow) uint8_t[room * kExceptionBytes]);
    if (found == nullptr) return TINYQMOE_OUT_OF_MEMORY;
    ClippedMaker maker(coded_.info, shape_.bits, found.get(), room);
    const uint64_t stride = round_up(coded_.info.cols, kClippedColumns);
    const tinyqmoe_status status = for_rows(begin, n_rows, stride, [&](uint32_t r, const uint8_t* offsets) {
      if (!maker.add(offsets, out + uint64_t{r} * shape_.row_bytes)) return false;
      store(end_of_tile(begin + r), static_cast<uint32_t>(maker.n_blocks()));
      return true;
    });
    if (status != TINYQMOE_OK) return status;
    part->n_exceptions = maker.n_blocks();
    part->exceptions.reset(new (std::nothrow) uint8_t[part->n_exceptions * kExceptionBytes]);
    if (part->exceptions == nullptr) return TINYQMOE_OUT_OF_MEMORY;
    std::copy_n(found.get(), part->n_exceptions * kExceptionBytes, part->exceptions.get());
    return TINYQMOE_OK;
  }

  // each(row from begin on, its offsets), of which there are `stride`. BUFFER_TOO_SMALL: one returned false.
  template <typename Each>
  tinyqmoe_status for_rows(uint32_t begin, uint32_t n_rows, uint64_t stride, Each each) const {
    const std::unique_ptr<uint8_t[]> offsets(new (std::nothrow) uint8_t[kDotRows * stride]());
    if (offsets == nullptr) return TINYQMOE_OUT_OF_MEMORY;
    RowCursor cursor(coded_, begin);
    for (uint32_t r = 0; r < n_rows; r += kDotRows) {
      const uint32_t n = std::min(kDotRows, n_rows - r);
      const Kernels& kernels = *kernels_for(TINYQMOE_ISA_AUTO);
      const tinyqmoe_status status = expand_rows(coded_, kernels, &cursor, n, {0, offsets.get(), stride});
      if (status != TINYQMOE_OK) return status;
      for (uint32_t k = 0; k < n; ++k) {
        if (!each(r + k, offsets.get() + k * stride)) return TINYQMOE_BUFFER_TOO_SMALL;
      }
    }
    return TINYQMOE_OK;
  }

  // In the index of clipped rows, where the exceptions of a row's tile end.
  uint8_t* end_of_tile(uint32_t row) const { return index_ + (uint64_t{row / kClippedRows} + 1) * sizeof(uint32_t); }

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
    if (coded_crc != load<uint32_t>(coded_.header + 52)) return TINYQMOE_BAD_PAYLOAD_CRC;
    return status == TINYQMOE_OK && shape_.codec == kClipped ? join_exceptions() : status;
  }

  tinyqmoe_status join_exceptions() {
    const uint32_t rows = coded_.info.rows;
    const uint64_t room = exception_room(coded_.info);
    uint64_t n = 0;
    for (uint64_t i = 0; i < n_parts_; ++i) {
      const Part& part = parts_[i];
      if (part.n_exceptions > room - n) return TINYQMOE_BUFFER_TOO_SMALL;
      const uint32_t begin = static_cast<uint32_t>(i) * part_rows_;
      for (uint32_t row = begin; row < begin + std::min(part_rows_, rows - begin); row += kClippedRows) {
        uint8_t* const end = end_of_tile(row);
        store(end, static_cast<uint32_t>(load<uint32_t>(end) + n));
      }
      uint8_t* const out = index_ + clipped_begins_bytes(rows) + n * kExceptionBytes;
      std::memcpy(out, part.exceptions.get(), part.n_exceptions * kExceptionBytes);
      n += part.n_exceptions;
    }
    return TINYQMOE_OK;
  }

  const tinyqmoe_tensor& coded_;
  Destination to_;
  Shape shape_;
  uint32_t part_rows_;
  uint64_t n_parts_;
  std::unique_ptr<Part[]> parts_;
  std::unique_ptr<uint8_t[]> index_of_file_;
  uint8_t* index_;  // as far as the payload
  uint32_t raw_crc_ = 0;
};

}  // namespace

Form form_of(const tinyqmoe_info& coded) {
  for (const Form form : kClippedForms) {
    if (suits_clipped(coded, clipped_bits(form))) return form;
  }
  return Form::kRaw;
}

Form wider_form(const tinyqmoe_info& coded, Form form) {
  for (const Form wider : kClippedForms) {
    if (wider > form && coded.n_levels > clipped_levels(clipped_bits(wider))) return wider;
  }
  return Form::kRaw;
}

uint32_t raw_bits(uint32_t n_levels) { return n_levels <= 4 ? 2 : n_levels <= 16 ? 4 : 8; }

uint64_t form_bytes(const tinyqmoe_info& coded, Form form) { return Shape(coded, form).total; }

tinyqmoe_status expand_to_memory(const tinyqmoe_tensor& coded, Form form, const tinyqmoe_threads* threads,
                                 uint8_t* blob) {
  Expansion expansion(coded, form, {blob, -1});
  bool written;
  const tinyqmoe_status status = expansion.run(threads, &written);
  if (status == TINYQMOE_OK) expansion.put_header(blob);
  return status;
}

tinyqmoe_status expand_to_file(const tinyqmoe_tensor& coded, Form form, const tinyqmoe_threads* threads, int file,
                               bool* written) {
  Expansion expansion(coded, form, {nullptr, file});
  const tinyqmoe_status status = expansion.run(threads, written);
  if (status == TINYQMOE_OK && *written) *written = expansion.finish_file();
  return status;
}

}  // namespace tinyqmoe
