#include "rows.h"

#include <memory>
#include <new>

#include "bytes.h"

namespace tinyqmoe {
namespace {

uint64_t coded_bytes(uint32_t n_codes, uint32_t code_bits) { return (uint64_t{n_codes} * code_bits + 7) / 8; }

uint32_t codes_of_row(const tinyqmoe_tensor& tensor, uint32_t row) {
  return load<uint16_t>(tensor.row_codes + uint64_t{row} * 2);
}

}  // namespace

RowCursor::RowCursor(const tinyqmoe_tensor& tensor, uint32_t row) : tensor_(tensor), row_(row), offset_(0) {
  if (tensor.info.codec == kRaw) {
    offset_ = row * tensor.row_bytes;
    return;
  }
  const uint32_t tile = row / kTileRows;
  offset_ = load<uint32_t>(tensor.tile_offsets + uint64_t{tile} * 4);
  for (uint32_t r = tile * kTileRows; r < row; ++r) {
    offset_ += coded_bytes(codes_of_row(tensor, r), tensor.info.code_bits);
  }
}

tinyqmoe_status RowCursor::next(CodedRow* row) {
  uint64_t bytes = tensor_.row_bytes;
  row->bytes = tensor_.payload + offset_;
  row->n_codes = 0;
  if (tensor_.info.codec == kLzw) {
    row->n_codes = codes_of_row(tensor_, row_);
    bytes = coded_bytes(row->n_codes, tensor_.info.code_bits);
    // True on open; checked again because a mapped file can change.
    const bool inside = offset_ <= tensor_.info.payload_bytes && bytes <= tensor_.info.payload_bytes - offset_;
    if (row->n_codes == 0 || row->n_codes > tensor_.info.cols || !inside) return TINYQMOE_BAD_INDEX;
  }
  ++row_;
  offset_ += bytes;
  return TINYQMOE_OK;
}

tinyqmoe_status check_unused_bits(const tinyqmoe_tensor& tensor, const CodedRow& row) {
  const uint64_t count = tensor.info.codec == kLzw ? row.n_codes : tensor.info.cols;
  const uint64_t bits = count * tensor.info.code_bits;
  if (bits % 8 == 0) return TINYQMOE_OK;
  return row.bytes[bits / 8] >> (bits % 8) == 0 ? TINYQMOE_OK : TINYQMOE_BAD_PADDING;
}

tinyqmoe_status expand_row(const tinyqmoe_tensor& tensor, const Kernels& kernels, const CodedRow& row, uint8_t bias,
                           uint8_t* out, uint64_t capacity) {
  const tinyqmoe_info& info = tensor.info;
  if (info.codec == kLzw) {
    const tinyqmoe_status status =
        kernels.expand_codes(*tensor.dictionary, row.bytes, row.n_codes, info.cols, bias, out, capacity);
    if (status != TINYQMOE_OK) return status;
  } else if (kernels.unpack(row.bytes, info.code_bits, info.cols, bias, out) >= info.n_levels) {
    return TINYQMOE_BAD_LEVEL;
  }
  return check_unused_bits(tensor, row);
}

tinyqmoe_status check_rows(const tinyqmoe_tensor& tensor) {
  const Kernels& kernels = *kernels_for(TINYQMOE_ISA_AUTO);
  const uint64_t capacity = uint64_t{tensor.info.cols} + kOverrun;
  const std::unique_ptr<uint8_t[]> scratch(new (std::nothrow) uint8_t[capacity]);
  if (scratch == nullptr) return TINYQMOE_OUT_OF_MEMORY;
  RowCursor cursor(tensor, 0);
  for (uint32_t r = 0; r < tensor.info.rows; ++r) {
    CodedRow row;
    tinyqmoe_status status = cursor.next(&row);
    if (status == TINYQMOE_OK) status = expand_row(tensor, kernels, row, 0, scratch.get(), capacity);
    if (status != TINYQMOE_OK) return status;
  }
  return TINYQMOE_OK;
}

}  // namespace tinyqmoe
