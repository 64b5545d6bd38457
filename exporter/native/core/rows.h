// Reading rows of any codec.
#ifndef TINYQMOE_CORE_ROWS_H_
#define TINYQMOE_CORE_ROWS_H_

#include "kernels.h"
#include "tensor.h"

namespace tinyqmoe {

// Walks rows upwards. Every row it hands out lies inside the payload, whatever the index now says.
class RowCursor {
 public:
  RowCursor(const tinyqmoe_tensor& tensor, uint32_t row);

  tinyqmoe_status next(CodedRow* row);

  uint32_t row() const { return row_; }

  // Of the next row in the payload, as the index has it.
  uint64_t offset() const { return offset_; }

 private:
  uint64_t bytes_of_row() const;

  const tinyqmoe_tensor& tensor_;
  uint32_t row_;
  uint64_t offset_;
};

// Where rows go: each offset plus bias, row r to out + r * stride.
struct RowTarget {
  uint8_t bias;
  uint8_t* out;
  uint64_t stride;
};

// The next n rows of the cursor. Writes the columns of each row and nothing else.
tinyqmoe_status expand_rows(const tinyqmoe_tensor& tensor, const Kernels& kernels, RowCursor* cursor, uint32_t n,
                            const RowTarget& target);

// BAD_PADDING if what a raw or base-3 row has past its last level is not zero.
tinyqmoe_status check_unused_bits(const tinyqmoe_tensor& tensor, const CodedRow& row);

// Reads every row, for verification on open.
tinyqmoe_status check_rows(const tinyqmoe_tensor& tensor);

// The levels of the tiles of a raw or base-3 tensor that hold the rows, unless they have been checked before: products do
// not look again, since a level that was changed meanwhile enters sums and nothing else. buffer: a row's columns.
tinyqmoe_status check_packed_rows(const tinyqmoe_tensor& tensor, const Kernels& kernels, uint32_t row_begin,
                                  uint32_t row_end, uint8_t* buffer);

// For a tensor whose rows are known to be right.
void mark_checked(const tinyqmoe_tensor& tensor);

}  // namespace tinyqmoe
#endif  // TINYQMOE_CORE_ROWS_H_
