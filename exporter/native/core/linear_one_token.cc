// Products of one token with rows that are not decoded first.
#include <algorithm>
#include <cstring>

#include "clipped.h"
#include "product.h"

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

namespace tinyqmoe {
namespace {

constexpr uint32_t kPackedRows = Results::kMost;  // that a call of a kernel takes

uint32_t blocks_of(uint64_t bytes) { return static_cast<uint32_t>((bytes + kPackedBlock - 1) / kPackedBlock); }

// Activations in the order in which packed offsets come out of 32 bytes: part j of a block is for the offsets j,
// j + per_byte, j + 2 * per_byte, ..., 32 elements of the high plane and then 32 of the low one.
template <uint32_t kPerByte>
void pack_x_plain(const X16& x, uint32_t cols, int8_t* __restrict packed) {
  for (uint32_t block = 0; block < cols; block += kPackedBlock * kPerByte, packed += 2 * kPackedBlock * kPerByte) {
    for (uint32_t i = 0; i < kPackedBlock; ++i) {
      for (uint32_t j = 0; j < kPerByte; ++j) {
        packed[2 * kPackedBlock * j + i] = x.high[block + i * kPerByte + j];
        packed[2 * kPackedBlock * j + kPackedBlock + i] = x.low[block + i * kPerByte + j];
      }
    }
  }
}

void pack_x(const X16Product& p, int8_t* packed) {
  const uint32_t bits = p.tensor.info.code_bits;
  const auto plain = bits == 2 ? pack_x_plain<4> : pack_x_plain<2>;
  p.kernels.pack_x == nullptr ? plain(p.x(0), p.cols(), packed) : p.kernels.pack_x(p.x(0), p.cols(), bits, packed);
}

// n columns of a row, which start on a block. A block that goes on in the next row meets zeros there; past the last row
// nothing is read: its end is copied.
int64_t dot_packed_group(const X16Product& p, const uint8_t* packed, uint32_t n, const int8_t* packed_x) {
  const tinyqmoe_info& info = p.tensor.info;
  const uint32_t bits = info.code_bits, n_bytes = (n * bits + 7) / 8, n_blocks = blocks_of(n_bytes);
  const uint8_t* const end = p.tensor.payload + info.payload_bytes;
  int64_t sums[2] = {};
  if (static_cast<uint64_t>(end - packed) >= uint64_t{n_blocks} * kPackedBlock) {
    p.kernels.dot_packed({packed, 0, 1, bits, n_blocks, packed_x, sums});
    return sums[0];
  }
  const uint32_t done = (n_blocks - 1) * kPackedBlock;
  uint8_t last[kPackedBlock] = {};
  std::memcpy(last, packed + done, n_bytes - done);
  p.kernels.dot_packed({packed, 0, 1, bits, n_blocks - 1, packed_x, sums});
  p.kernels.dot_packed({last, 0, 1, bits, 1, packed_x + uint64_t{done} * 2 * 8 / bits, sums + 1});
  return sums[0] + sums[1];
}

// One row, groups that end on blocks.
void multiply_packed_row(const X16Product& p, uint32_t r, const int8_t* packed_x) {
  const uint8_t* const row = p.tensor.payload + r * p.tensor.row_bytes;
  float y = 0.0f;
  for (uint32_t g = 0; g < p.n_groups; ++g) {
    const uint32_t begin = g * p.group_size;
    const int64_t sum = dot_packed_group(p, row + uint64_t{begin} * p.tensor.info.code_bits / 8,
                                         p.group_end(g) - begin, packed_x + uint64_t{begin} * 2);
    p.add_group(p.scale(r, g), 0, sum + p.correction(p.x_sum(0, g)), &y);
  }
  p.store_row(r, 0, y);
}

// The rows as far as whole blocks can be read, one group. Returns the first that is left.
uint32_t multiply_whole_rows(const X16Product& p, PackedKernel kernel, const int8_t* packed_x) {
  const tinyqmoe_info& info = p.tensor.info;
  const uint64_t row_bytes = p.tensor.row_bytes;
  const uint32_t n_blocks = blocks_of(row_bytes);
  const uint64_t read = uint64_t{n_blocks} * kPackedBlock;
  if (info.payload_bytes < read) return p.row_begin;
  const uint32_t end = static_cast<uint32_t>(std::min<uint64_t>(p.row_end, (info.payload_bytes - read) / row_bytes + 1));
  const Results results(p, 0);
  int64_t sums[kPackedRows];
  uint32_t row = p.row_begin;
  for (uint32_t n; row < end; row += n) {
    n = std::min(kPackedRows, end - row);
    const uint8_t* const rows = p.tensor.payload + row * row_bytes;
    kernel({rows, row_bytes, n, info.code_bits, n_blocks, packed_x, sums});
    results.put(row, n, sums);
  }
  return row;
}

// Where `read` bytes of a row can be read: past the last row nothing is, so it is copied.
const uint8_t* readable_row(const X16Product& p, uint64_t row, uint64_t read) {
  const uint64_t row_bytes = p.tensor.row_bytes, at = row * row_bytes;
  if (at + read <= p.tensor.info.payload_bytes) return p.tensor.payload + at;
  uint8_t* const copy = p.scratch + p.at.rows;
  std::memset(copy + row_bytes, 0, read - row_bytes);
  return static_cast<const uint8_t*>(std::memcpy(copy, p.tensor.payload + at, row_bytes));
}

// Groups of half a block or whole ones.
void multiply_packed_groups(const X16Product& p, const int8_t* packed_x) {
  const uint64_t read = blocks_of(p.tensor.row_bytes) * uint64_t{kPackedBlock};
  GroupsTask task = groups_task(p, p.tensor.info.code_bits, packed_x);
  for (uint32_t row = p.row_begin; row < p.row_end; row += kDotRows) {
    const uint32_t n = std::min(kDotRows, p.row_end - row);
    for (uint32_t r = 0; r < kDotRows; ++r) task.rows[r] = readable_row(p, row + std::min(r, n - 1), read);
    multiply_groups(p, &task, row, n);
  }
}

// Of a block of base-3 codes, n bytes with n columns of each digit, those of the last one as far as there are any.
inline void pack_base3_block(const X16& x, uint32_t n, uint32_t cols, int8_t* to) {
  for (uint32_t at = 0; at < cols; at += n, to += 4 * kBase3Block) {
    const uint32_t of_digit = std::min(n, cols - at);
    std::memcpy(to, x.high + at, of_digit);
    std::memcpy(to + 2 * kBase3Block, x.low + at, of_digit);
  }
}

// Activations in the order of a base-3 row's digits, with zeros for what follows the row in its last pair of blocks.
void pack_base3_x(const X16& x, uint32_t cols, int8_t* packed) {
  const uint32_t n_whole = cols / kBase3Columns, rest = cols % kBase3Columns;
  if (cols % (2 * kBase3Columns) != 0) std::memset(packed + base3_x_at(n_whole & ~1u), 0, kBase3PairX);
  for (uint32_t block = 0; block < n_whole; ++block) {
    pack_base3_block(x.from(block * kBase3Columns), kBase3Block, kBase3Columns, packed + base3_x_at(block));
  }
  const uint32_t n = (rest + kBase3Digits - 1) / kBase3Digits;
  pack_base3_block(x.from(cols - rest), n, rest, packed + base3_x_at(n_whole));
}

}  // namespace

// One token: packed offsets meet the activations without being stored.
void multiply_packed(const X16Product& p) {
  int8_t* packed_x = reinterpret_cast<int8_t*>(p.scratch + p.at.packed_x);
  pack_x(p, packed_x);
  if (suits_groups(p)) return multiply_packed_groups(p, packed_x);
  uint32_t row = p.n_groups == 1 ? multiply_whole_rows(p, p.kernels.dot_packed, packed_x) : p.row_begin;
  for (; row < p.row_end; ++row) multiply_packed_row(p, row, packed_x);
}

// One token, one group.
void multiply_clipped(const X16Product& p) {
  const uint32_t bits = p.tensor.info.code_bits;
  const int64_t level_min = p.tensor.info.level_min + clipped_base(p.tensor.info, bits);
  const Results results(p, 0, level_min);
  const X16 x = p.x(0);
  static_assert(kClippedRows <= Results::kMost);
  int64_t sums[kClippedRows];
  for (uint32_t row = p.row_begin, n; row < p.row_end; row += n) {
    const uint32_t first = row % kClippedRows;
    n = std::min(kClippedRows - first, p.row_end - row);
    const uint8_t* const rows = p.tensor.payload + row * p.tensor.row_bytes;
    p.kernels.dot_clipped(
        {rows, p.tensor.row_bytes, exceptions_of(p.tensor, row), bits, first, n, p.cols(), x, sums});
    results.put(row, n, sums);
  }
}

// One token, one group, digits that are not stored.
void multiply_base3(const X16Product& p) {
  int8_t* const packed_x = reinterpret_cast<int8_t*>(p.scratch + p.at.packed_x);
  pack_base3_x(p.x(0), p.cols(), packed_x);
  const uint32_t n_blocks = blocks_of(p.tensor.row_bytes);
  const Results results(p, 0);
  for (uint32_t row = multiply_whole_rows(p, p.kernels.dot_base3, packed_x); row < p.row_end; ++row) {
    int64_t sum;
    const uint8_t* const packed = readable_row(p, row, n_blocks * uint64_t{kPackedBlock});
    p.kernels.dot_base3({packed, 0, 1, p.tensor.info.code_bits, n_blocks, packed_x, &sum});
    results.put(row, 1, &sum);
  }
}

}  // namespace tinyqmoe
