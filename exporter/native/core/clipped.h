// Clipped levels: the expanded form of a matrix of many levels, few of which are far from zero. A level takes 4, 5 or 6
// bits. One that these do not have is stored as the nearest of those they have, and is an exception: its column, and what
// it is more than what is stored. A sum over a row is that of what is stored, and for each exception that difference times
// an activation: integers, so the bits are those of any other form.
//
// Its blob exists in memory and in cache files only. It is that of codec raw, with kClipped in the place of the codec, rows
// of whole blocks (kernels.h), and an index of
//   uint32 [tiles + 1]  the first block of exceptions of each tile of kClippedRows rows, and the end of the last one's
//   blocks [room]       of kExceptions exceptions of one row, by row and column (kernels.h). What a row leaves of its last
//                       block has the column 0 and the difference 0.
// Blocks, because they are vectors, and lists of tiles, because a loop that ends with each row costs more than what it does.
//
// How much room there is depends on the shape alone: what a matrix takes is known before it is decoded.
#ifndef TINYQMOE_CORE_CLIPPED_H_
#define TINYQMOE_CORE_CLIPPED_H_

#include <algorithm>
#include <cstdint>

#include "bytes.h"
#include "kernels.h"
#include "rows.h"

namespace tinyqmoe {

// One block of exceptions for so many weights is room enough, or another form is better.
constexpr uint32_t kWeightsPerBlock = 256;

// How many levels so many bits have.
constexpr uint32_t clipped_levels(uint32_t bits) { return 1u << bits; }

// The offset of the lowest level that so many bits have, which is -8, -16 or -32 where the alphabet has as many levels
// around zero.
inline uint8_t clipped_base(const tinyqmoe_info& info, uint32_t bits) {
  const int32_t n = static_cast<int32_t>(clipped_levels(bits));
  return static_cast<uint8_t>(std::clamp<int32_t>(-n / 2 - info.level_min, 0, info.n_levels - n));
}

// How many blocks of exceptions a matrix may have.
inline uint64_t exception_room(const tinyqmoe_info& info) {
  return std::max<uint64_t>(info.rows, uint64_t{info.rows} * info.cols / kWeightsPerBlock);
}

// Whole blocks, zero past the last column.
inline uint64_t clipped_row_bytes(uint32_t cols, uint32_t bits) {
  return round_up(cols, kClippedColumns) / kClippedColumns * clipped_block(bits);
}

inline uint64_t clipped_begins_bytes(uint32_t rows) {
  return (round_up(rows, kClippedRows) / kClippedRows + 1) * sizeof(uint32_t);
}

inline uint64_t clipped_index_bytes(const tinyqmoe_info& info) {
  return round_up(clipped_begins_bytes(info.rows) + exception_room(info) * kExceptionBytes, 4);
}

// Whether so many bits can hold the matrix, and its rate promises that it has few exceptions.
bool suits_clipped(const tinyqmoe_info& coded, uint32_t bits);

// The exceptions of the tile of a row, of a tensor of codec kClipped. Whatever the bytes are, they lie in the index.
inline Exceptions exceptions_of(const tinyqmoe_tensor& tensor, uint32_t row) {
  const uint8_t* const first = tensor.index + clipped_begins_bytes(tensor.info.rows);
  const uint8_t* const begins = tensor.index + uint64_t{row / kClippedRows} * sizeof(uint32_t);
  const uint64_t room = exception_room(tensor.info);
  return {first + std::min<uint64_t>(load<uint32_t>(begins), room) * kExceptionBytes,
          first + std::min<uint64_t>(load<uint32_t>(begins + sizeof(uint32_t)), room) * kExceptionBytes};
}

// Makes clipped rows, and collects their exceptions.
class ClippedMaker {
 public:
  // Up to `room` blocks of exceptions go to `out`.
  ClippedMaker(const tinyqmoe_info& info, uint32_t bits, uint8_t* out, uint64_t room)
      : info_(info), bits_(bits), out_(out), room_(room) {}

  // The next row, which begins a tile or goes on with it; offsets are read as far as the end of the block that has the last
  // column. False: no room.
  bool add(const uint8_t* offsets, uint8_t* row);

  // So far.
  uint64_t n_blocks() const { return n_; }

 private:
  bool find(const uint8_t* offsets, const uint8_t* nearest, uint32_t begin);
  bool put(uint32_t column, int32_t difference);

  const tinyqmoe_info& info_;
  uint32_t bits_;
  uint8_t* out_;
  uint64_t room_;
  uint64_t n_ = 0;
  uint32_t row_ = 0;
  uint32_t in_block_ = kExceptions;  // the next one's place in the row's last block
};

// Adds the differences of n rows of one tile to what they store, which is in to.out as offsets plus bias. BAD_LEVEL: a level
// is outside the alphabet. BAD_INDEX: an exception is outside of its row.
tinyqmoe_status add_exceptions(const tinyqmoe_tensor& tensor, uint32_t row, uint32_t n, const RowTarget& to);

}  // namespace tinyqmoe
#endif  // TINYQMOE_CORE_CLIPPED_H_
