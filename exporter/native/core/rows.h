// Reading rows of either codec.
#ifndef TINYQMOE_CORE_ROWS_H_
#define TINYQMOE_CORE_ROWS_H_

#include "kernels.h"
#include "tensor.h"

namespace tinyqmoe {

struct CodedRow {
  const uint8_t* bytes;
  uint32_t n_codes;  // lzw only
};

// Walks rows upwards. Every row it hands out lies inside the payload, whatever the index now says.
class RowCursor {
 public:
  RowCursor(const tinyqmoe_tensor& tensor, uint32_t row);

  tinyqmoe_status next(CodedRow* row);

  // Of the next row in the payload, as the index has it.
  uint64_t offset() const { return offset_; }

 private:
  const tinyqmoe_tensor& tensor_;
  uint32_t row_;
  uint64_t offset_;
};

// Offsets of one row, plus bias, to out[0..cols); may write up to out[capacity), capacity >= cols.
tinyqmoe_status expand_row(const tinyqmoe_tensor& tensor, const Kernels& kernels, const CodedRow& row, uint8_t bias,
                           uint8_t* out, uint64_t capacity);

// BAD_PADDING if the bits after the row's last level or codeword are not zero.
tinyqmoe_status check_unused_bits(const tinyqmoe_tensor& tensor, const CodedRow& row);

// Reads every row, for verification on open.
tinyqmoe_status check_rows(const tinyqmoe_tensor& tensor);

}  // namespace tinyqmoe
#endif  // TINYQMOE_CORE_ROWS_H_
