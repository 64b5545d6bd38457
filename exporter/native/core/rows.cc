#include "rows.h"

#include <algorithm>
#include <memory>
#include <new>

#include "bytes.h"
#include "clipped.h"

namespace tinyqmoe {
namespace {

constexpr uint32_t kExpandedRows = 32;  // at a time

// What the digits of a base-3 row's last block are past its last level.
bool ends_with_zeros(const uint8_t* packed, uint32_t cols) {
  const uint32_t begin = (cols - 1) / kBase3Columns * kBase3Block;  // the block's first byte
  const uint32_t left = cols - begin * kBase3Digits;
  const uint32_t n = (left + kBase3Digits - 1) / kBase3Digits;
  for (uint32_t at = left; at < n * kBase3Digits; ++at) {
    uint8_t rest = packed[begin + at % n];
    for (uint32_t digit = at / n; digit > 0; --digit) rest = static_cast<uint8_t>(rest * 3);
    if (rest * 3 >> 8 != 0) return false;
  }
  return true;
}

tinyqmoe_status expand_phrases(const tinyqmoe_tensor& tensor, const Kernels& kernels, const CodedRow* rows, uint32_t n,
                               const RowTarget& to) {
  const uint32_t cols = tensor.info.cols;
  const tinyqmoe_status status = kernels.expand_phrases(*tensor.dictionary, rows, n, cols, to.out, to.stride);
  if (status != TINYQMOE_OK || to.bias == 0) return status;
  for (uint32_t k = 0; k < n; ++k) {
    uint8_t* const out = to.out + k * to.stride;
    for (uint32_t i = 0; i < cols; ++i) out[i] = static_cast<uint8_t>(out[i] + to.bias);
  }
  return TINYQMOE_OK;
}

tinyqmoe_status expand_packed(const tinyqmoe_tensor& tensor, const Kernels& kernels, const CodedRow* rows, uint32_t n,
                              const RowTarget& to) {
  const tinyqmoe_info& info = tensor.info;
  for (uint32_t k = 0; k < n; ++k) {
    uint8_t* const out = to.out + k * to.stride;
    if (info.codec == kBase3) {
      if (kernels.expand_base3(rows[k].bytes, info.cols, to.bias, out) >= kBase3Codes) return TINYQMOE_BAD_CODE;
    } else if (kernels.unpack(rows[k].bytes, info.code_bits, info.cols, to.bias, out) >= info.n_levels) {
      return TINYQMOE_BAD_LEVEL;
    }
    const tinyqmoe_status status = check_unused_bits(tensor, rows[k]);
    if (status != TINYQMOE_OK) return status;
  }
  return TINYQMOE_OK;
}

// row: the number of the first.
tinyqmoe_status expand_clipped(const tinyqmoe_tensor& tensor, const Kernels& kernels, const CodedRow* rows, uint32_t row,
                               uint32_t n, const RowTarget& to) {
  const tinyqmoe_info& info = tensor.info;
  const uint8_t bias = static_cast<uint8_t>(to.bias + clipped_base(info, info.code_bits));
  for (uint32_t k = 0; k < n; ++k) {
    kernels.unpack_clipped(rows[k].bytes, info.code_bits, info.cols, bias, to.out + k * to.stride);
  }
  for (uint32_t k = 0, of_tile; k < n; k += of_tile) {
    of_tile = std::min(n - k, kClippedRows - (row + k) % kClippedRows);
    const RowTarget target = {to.bias, to.out + k * to.stride, to.stride};
    const tinyqmoe_status status = add_exceptions(tensor, row + k, of_tile, target);
    if (status != TINYQMOE_OK) return status;
  }
  return TINYQMOE_OK;
}

tinyqmoe_status expand_any(const tinyqmoe_tensor& tensor, const Kernels& kernels, const CodedRow* rows, uint32_t row,
                           uint32_t n, const RowTarget& to) {
  if (tensor.info.codec == kClipped) return expand_clipped(tensor, kernels, rows, row, n, to);
  const auto expand = tensor.info.codec == kLzw ? expand_phrases : expand_packed;
  return expand(tensor, kernels, rows, n, to);
}

}  // namespace

RowCursor::RowCursor(const tinyqmoe_tensor& tensor, uint32_t row)
    : tensor_(tensor), row_(row), offset_(row * tensor.row_bytes) {
  if (tensor.info.codec != kLzw) return;
  row_ = row / kTileRows * kTileRows;
  offset_ = tensor.tiles[row / kTileRows].payload;
  for (; row_ < row; ++row_) offset_ += bytes_of_row();
}

uint64_t RowCursor::bytes_of_row() const {
  if (tensor_.info.codec != kLzw) return tensor_.row_bytes;
  const Tile& tile = tensor_.tiles[row_ / kTileRows];
  return tile.shortest + delta_at(tensor_.index + tile.deltas, tile.width, row_ % kTileRows);
}

tinyqmoe_status RowCursor::next(CodedRow* row) {
  *row = {tensor_.payload + offset_, bytes_of_row()};
  // True on open; checked again because a mapped file can change.
  const bool inside = offset_ <= tensor_.info.payload_bytes && row->n_bytes <= tensor_.info.payload_bytes - offset_;
  if (!inside) return TINYQMOE_BAD_INDEX;
  ++row_;
  offset_ += row->n_bytes;
  return TINYQMOE_OK;
}

tinyqmoe_status check_unused_bits(const tinyqmoe_tensor& tensor, const CodedRow& row) {
  const tinyqmoe_info& info = tensor.info;
  if (info.codec == kBase3) return ends_with_zeros(row.bytes, info.cols) ? TINYQMOE_OK : TINYQMOE_BAD_PADDING;
  const uint64_t bits = uint64_t{info.cols} * info.code_bits;
  if (bits % 8 == 0) return TINYQMOE_OK;
  return row.bytes[bits / 8] >> (bits % 8) == 0 ? TINYQMOE_OK : TINYQMOE_BAD_PADDING;
}

tinyqmoe_status expand_rows(const tinyqmoe_tensor& tensor, const Kernels& kernels, RowCursor* cursor, uint32_t n,
                            const RowTarget& target) {
  for (uint32_t r = 0; r < n; r += kExpandedRows) {
    const uint32_t count = std::min(kExpandedRows, n - r);
    const uint32_t row = cursor->row();
    CodedRow rows[kExpandedRows];
    for (uint32_t k = 0; k < count; ++k) {
      const tinyqmoe_status status = cursor->next(&rows[k]);
      if (status != TINYQMOE_OK) return status;
    }
    const RowTarget group = {target.bias, target.out + r * target.stride, target.stride};
    const tinyqmoe_status status = expand_any(tensor, kernels, rows, row, count, group);
    if (status != TINYQMOE_OK) return status;
  }
  return TINYQMOE_OK;
}

tinyqmoe_status check_rows(const tinyqmoe_tensor& tensor) {
  const Kernels& kernels = *kernels_for(TINYQMOE_ISA_AUTO);
  const uint64_t cols = tensor.info.cols;
  const std::unique_ptr<uint8_t[]> scratch(new (std::nothrow) uint8_t[kDotRows * cols]);
  if (scratch == nullptr) return TINYQMOE_OUT_OF_MEMORY;
  RowCursor cursor(tensor, 0);
  for (uint32_t r = 0; r < tensor.info.rows; r += kDotRows) {
    const uint32_t n = std::min(kDotRows, tensor.info.rows - r);
    const tinyqmoe_status status = expand_rows(tensor, kernels, &cursor, n, {0, scratch.get(), cols});
    if (status != TINYQMOE_OK) return status;
  }
  mark_checked(tensor);
  return TINYQMOE_OK;
}

tinyqmoe_status check_packed_rows(const tinyqmoe_tensor& tensor, const Kernels& kernels, uint32_t row_begin,
                                  uint32_t row_end, uint8_t* buffer) {
  for (uint32_t row = row_begin / kTileRows * kTileRows; row < row_end; row += kTileRows) {
    std::atomic<bool>& checked = tensor.checked[row / kTileRows];
    if (checked.load(std::memory_order_relaxed)) continue;
    RowCursor cursor(tensor, row);
    const uint32_t n = std::min(kTileRows, tensor.info.rows - row);
    const tinyqmoe_status status = expand_rows(tensor, kernels, &cursor, n, {0, buffer, 0});
    if (status != TINYQMOE_OK) return status;
    checked.store(true, std::memory_order_relaxed);
  }
  return TINYQMOE_OK;
}

void mark_checked(const tinyqmoe_tensor& tensor) {
  if (tensor.checked == nullptr) return;
  for (uint64_t tile = 0; tile < n_tiles(tensor.info.rows); ++tile) tensor.checked[tile] = true;
}

}  // namespace tinyqmoe
