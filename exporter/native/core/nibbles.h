// Nibbles: the expanded form of a matrix of more than sixteen levels, few of which are far from zero. A level takes 4 bits.
// One that a nibble does not have is stored as the nearest of those it has, and is an exception: where it is, and what it
// is more than its nibble. A sum over a row is that of its nibbles, and for each exception that difference times an
// activation: integers, so the bits are those of any other form.
//
// Its blob exists in memory and in cache files only. It is that of codec raw, with kNibbles in the place of the codec, rows
// of whole blocks (kernels.h), and an index of
//   uint32 [tiles + 1]  the first exception of each kNibbleRows rows, and the end of the last
//   uint16 [room]       the exceptions of a tile by column: in the lowest 4 bits the columns since the one before (from
//                       column 0 for the first), then 4 bits of the row in the tile, and 8 of the difference, an int8.
//                       Where columns are too far apart, exceptions of the difference 0 lie between.
// A tile's are one list, because a loop that ends with each row costs more than what it does.
//
// How much room there is depends on the shape alone: what a matrix takes is known before it is decoded.
#ifndef TINYQMOE_CORE_NIBBLES_H_
#define TINYQMOE_CORE_NIBBLES_H_

#include <algorithm>
#include <cstdint>
#include <memory>

#include "bytes.h"
#include "kernels.h"
#include "rows.h"

namespace tinyqmoe {

constexpr uint32_t kNibbleLevels = 16;
constexpr uint32_t kNibbleRows = 16;

// One exception for so many weights is room enough, or another form is better.
constexpr uint32_t kWeightsPerException = 32;

// The offset of a nibble's lowest level, which is -8 where the alphabet has sixteen levels around zero.
inline uint8_t nibble_base(const tinyqmoe_info& info) {
  return static_cast<uint8_t>(std::clamp<int32_t>(-8 - info.level_min, 0, info.n_levels - kNibbleLevels));
}

// How many exceptions a matrix may have.
inline uint64_t exception_room(const tinyqmoe_info& info) {
  return uint64_t{info.rows} * info.cols / kWeightsPerException;
}

// Whole blocks, zero past the last column.
inline uint64_t nibble_row_bytes(uint32_t cols) { return round_up(cols, kNibbleColumns) / 2; }

inline uint64_t nibble_begins_bytes(uint32_t rows) {
  return (round_up(rows, kNibbleRows) / kNibbleRows + 1) * sizeof(uint32_t);
}

inline uint64_t nibble_index_bytes(const tinyqmoe_info& info) {
  return round_up(nibble_begins_bytes(info.rows) + exception_room(info) * sizeof(uint16_t), 4);
}

// Whether nibbles can hold the matrix, and its rate promises that it has few exceptions.
bool suits_nibbles(const tinyqmoe_info& coded);

// The exceptions of a tile, from the first column on. Whatever the bytes are, nothing past their room is read, and no
// column is past the end that the caller names.
class Exceptions {
 public:
  // Of the tile of a row, of a tensor of codec kNibbles.
  Exceptions(const tinyqmoe_tensor& tensor, uint32_t row) {
    const uint8_t* const first = tensor.index + nibble_begins_bytes(tensor.info.rows);
    const uint8_t* const begins = tensor.index + uint64_t{row / kNibbleRows} * sizeof(uint32_t);
    const uint64_t room = exception_room(tensor.info);
    at_ = first + std::min<uint64_t>(load<uint32_t>(begins), room) * sizeof(uint16_t);
    end_ = first + std::min<uint64_t>(load<uint32_t>(begins + sizeof(uint32_t)), room) * sizeof(uint16_t);
  }

  // Those before a column, which were not met yet: visit(row in the tile, column, difference).
  template <typename Visit>
  void visit_to(uint32_t end_column, Visit visit) {
    const uint8_t* at = at_;  // in registers, whatever is visited
    const uint8_t* const end = end_;
    uint32_t last = column_;
    for (; at < end; at += sizeof(uint16_t)) {
      const uint32_t exception = load<uint16_t>(at);
      const uint32_t column = last + exception % 16;
      if (column >= end_column) break;
      last = column;
      visit(exception / 16 % kNibbleRows, column, static_cast<int32_t>(static_cast<int8_t>(exception >> 8)));
    }
    at_ = at;
    column_ = last;
  }

  // Adds what the nibbles of the columns before end_column lack in their sums with the activations x.
  void add_to(uint32_t end_column, const int16_t* x, int64_t sums[kNibbleRows]) {
    while (add_some(end_column, x, sums)) continue;
    visit_to(end_column, [=](uint32_t row, uint32_t column, int32_t difference) {
      sums[row] += difference * x[column];
    });
  }

  bool at_end() const { return at_ >= end_; }

 private:
  // By fours, each of which adds up in 32 bits for itself: it need not wait where the same row comes soon again. False:
  // fewer than four are left before the column.
  bool add_some(uint32_t end_column, const int16_t* x, int64_t sums[kNibbleRows]) {
    constexpr uint32_t kFours = 512;
    static_assert(int64_t{kFours} * 128 * kMostActivation <= INT32_MAX);
    int32_t lanes[kNibbleRows][4] = {};
    const uint8_t* at = at_;
    uint32_t last = column_, n = 0;
    for (; n < kFours && end_ - at >= 8; ++n, at += 8) {
      const uint32_t a = last + at[0] % 16, b = a + at[2] % 16, c = b + at[4] % 16, d = c + at[6] % 16;
      if (d >= end_column) break;
      lanes[at[0] / 16][0] += static_cast<int8_t>(at[1]) * x[a];
      lanes[at[2] / 16][1] += static_cast<int8_t>(at[3]) * x[b];
      lanes[at[4] / 16][2] += static_cast<int8_t>(at[5]) * x[c];
      lanes[at[6] / 16][3] += static_cast<int8_t>(at[7]) * x[d];
      last = d;
    }
    at_ = at;
    column_ = last;
    for (uint32_t r = 0; r < kNibbleRows; ++r) {
      for (const int32_t lane : lanes[r]) sums[r] += lane;
    }
    return n == kFours;
  }

  const uint8_t* at_;
  const uint8_t* end_;
  uint32_t column_ = 0;
};

// Makes nibbles of rows, and collects their exceptions.
class NibbleMaker {
 public:
  // Up to `room` exceptions go to `out`.
  NibbleMaker(const tinyqmoe_info& info, uint16_t* out, uint64_t room);

  // False: out of memory.
  bool is_ready() const { return found_ != nullptr && ends_ != nullptr; }

  // The next row; offsets are read as far as the end of the block that has the last column.
  void add(const uint8_t* offsets, uint8_t* nibbles);

  // Whether the tile that ends here has room for its exceptions.
  bool end_tile();

  // So far.
  uint64_t n_exceptions() const { return n_; }

 private:
  struct Found {
    uint16_t column;
    uint8_t row;
    int8_t difference;
  };

  bool put(uint32_t distance, uint32_t row, int32_t difference);
  void sort_by_column(Found* sorted);

  const tinyqmoe_info& info_;
  uint16_t* out_;
  uint64_t room_;
  uint64_t n_ = 0;
  uint32_t row_ = 0;      // in the tile
  uint32_t n_found_ = 0;  // in the tile
  std::unique_ptr<Found[]> found_;     // as found, and behind them room for as many sorted
  std::unique_ptr<uint32_t[]> ends_;  // of each column's
};

// Nibbles plus bias to out[0..cols).
void unpack_nibbles(const uint8_t* nibbles, uint32_t cols, uint8_t bias, uint8_t* out);

// Adds the differences of n rows of one tile to their nibbles, which are in to.out as offsets plus bias. BAD_LEVEL: a level
// is outside the alphabet. BAD_INDEX: an exception is outside of the tile.
tinyqmoe_status add_exceptions(const tinyqmoe_tensor& tensor, uint32_t row, uint32_t n, const RowTarget& to);

}  // namespace tinyqmoe
#endif  // TINYQMOE_CORE_NIBBLES_H_
