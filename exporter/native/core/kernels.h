// The inner loops, one table of functions for each instruction set. All give the same bits.
//
// Levels travel as *offsets*: uint8, level - level_min. Products are computed on offsets and corrected once:
//   sum(level * x) = sum(offset * x) + level_min * sum(x)
#ifndef TINYQMOE_CORE_KERNELS_H_
#define TINYQMOE_CORE_KERNELS_H_

#include <algorithm>
#include <cstdint>

#include "bytes.h"
#include "dictionary.h"
#include "scales.h"
#include "tinyqmoe/tinyqmoe.h"

namespace tinyqmoe {

constexpr uint32_t kDotRows = 4;

// Packed rows are multiplied in blocks of 32 bytes, see pack_x in linear_one_token.cc.
constexpr uint32_t kPackedBlock = 32;

// A block of a base-3 row: up to 32 bytes, of which byte i holds the columns i, i + n, i + 2n, i + 3n and i + 4n, where n
// is the number of its bytes (FORMAT.md section 5).
constexpr uint32_t kBase3Block = 32;
constexpr uint32_t kBase3Digits = 5;
constexpr uint32_t kBase3Columns = kBase3Block * kBase3Digits;
constexpr uint32_t kBase3Codes = 243;  // 3^5

// Activations for base-3 rows lie in pairs of blocks: for each digit of the 64 bytes, 64 elements of the high plane and then
// 64 of the low one.
constexpr uint32_t kBase3PairX = 2 * 2 * kBase3Columns;

// Where those of a block's first digit begin. From a digit to the next it is 4 * kBase3Block, and 2 * kBase3Block from the
// high plane to the low one.
constexpr uint64_t base3_x_at(uint32_t block) { return uint64_t{block / 2} * kBase3PairX + block % 2 * kBase3Block; }

// Largest |q| of the activations; 256 * 127, so that the high plane is in [-127, 127].
constexpr int32_t kMostActivation = 32512;

// The activations q of one token, in two forms: a kernel reads the one that suits it. Both are zero
// past the last column, as far as padded_cols.
struct X16 {
  const int16_t* whole;
  const int8_t* high;  // q = 256 * high + low
  const int8_t* low;

  X16 from(uint32_t column) const { return {whole + column, high + column, low + column}; }
};

// A row as it lies in the payload.
struct CodedRow {
  const uint8_t* bytes;
  uint64_t n_bytes;
};

// kDotRows rows times one token.
struct DotTask {
  const uint8_t* offsets[kDotRows];
  X16 x;
  uint32_t n;
  uint32_t n_levels;
  int32_t x_sum;  // sum of x over the n columns
  int64_t sums[kDotRows];
};

// kDotRows rows times one token, with a scale for each group of columns, all of which are whole.
struct GroupsTask {
  const uint8_t* rows[kDotRows];
  uint32_t bits;  // 8: rows are offsets, else packed ones, and a group is half a block or whole ones
  uint32_t n_levels;
  uint32_t cols;
  uint32_t group_size;         // a multiple of kGroupColumns, at most kMostGroup
  X16 x;
  const int8_t* packed_x;      // for packed rows: pack_x of linear_one_token.cc
  const int32_t* x_sums;       // [n_groups]: sum of x
  const int32_t* corrections;  // [n_groups, kDotRows]: what a sum over offsets lacks to be one over levels
  Scales stored_scales;
  uint64_t first_scales[kDotRows];  // of each row, where its groups' scales begin
  float* scales;                    // [n_groups, kDotRows]: room for put_scales
  float y[kDotRows];                // sum of float(sum(level * x)) * scale, group after group

  uint32_t n_groups() const { return cols / group_size; }

  // Those from this group on.
  void put_scales(uint32_t first) const {
    for (uint32_t r = 0; r < kDotRows; ++r) {
      stored_scales.put(first_scales[r] + first, n_groups() - first, kDotRows, scales + first * kDotRows + r);
    }
  }

  bool has_half_blocks() const { return group_size * bits == kPackedBlock * 8 / 2; }
};

constexpr uint32_t kGroupColumns = 32;
constexpr uint32_t kMostGroup = 256;
static_assert(int64_t{kMostGroup} * 255 * kMostActivation <= INT32_MAX);  // so that a group's sum fits an int32

constexpr uint32_t kBatchRows = 16;

// Rows of clipped offsets lie in blocks: kClippedLower bytes of the lower 4 bits of each column, and then of the bits above,
// if any, 8 bytes for each bit. Of n bytes, byte i has the columns i, i + n, i + 2n and so on, from its lowest bits up.
constexpr uint32_t kClippedColumns = 64;
constexpr uint32_t kClippedLower = kClippedColumns / 2;

// Bytes of a block.
constexpr uint32_t clipped_block(uint32_t bits) { return kClippedColumns / 8 * bits; }

// Clipped rows have their exceptions in tiles, of which each is a list of blocks. A block has kExceptions exceptions of one
// row: their columns, uint16, their differences, int8, and a byte that is the row in the tile.
constexpr uint32_t kClippedRows = 16;  // of a tile
constexpr uint32_t kExceptions = 8;
constexpr uint32_t kDifferences = kExceptions * sizeof(uint16_t);     // where those of a block begin
constexpr uint32_t kExceptionBytes = kDifferences + kExceptions + 1;  // of a block

struct Exceptions {
  const uint8_t* block;
  const uint8_t* end;

  bool any() const { return block < end; }
  void next() { block += kExceptionBytes; }
  uint32_t row() const { return block[kExceptionBytes - 1] % kClippedRows; }

  // Of exception i of the block.
  uint32_t column(uint32_t i) const { return load<uint16_t>(block + sizeof(uint16_t) * i); }
  int32_t difference(uint32_t i) const { return static_cast<int8_t>(block[kDifferences + i]); }
};

// Packed rows of 2 or 4 bits, or rows of base-3 codes, times one token, in whole blocks.
struct PackedTask {
  const uint8_t* rows;
  uint64_t row_bytes;  // from a row to the next
  uint32_t n_rows;
  uint32_t code_bits;
  uint32_t n_blocks;
  const int8_t* packed_x;  // pack_x or pack_base3_x of linear_one_token.cc
  int64_t* sums;           // [n_rows], of offset * x

  const uint8_t* row(uint32_t r) const { return rows + r * row_bytes; }
};

using PackedKernel = void (*)(const PackedTask& task);

// One row after the other, by the kernel of a row with so many bits as a task has.
using PackedRowKernel = int64_t (*)(const uint8_t* packed, uint32_t n_blocks, const int8_t* packed_x);
inline void run_packed(const PackedTask& task, PackedRowKernel two, PackedRowKernel four) {
  const PackedRowKernel kernel = task.code_bits == 2 ? two : four;
  for (uint32_t r = 0; r < task.n_rows; ++r) task.sums[r] = kernel(task.row(r), task.n_blocks, task.packed_x);
}

// Rows of one tile times one token.
struct ClippedTask {
  const uint8_t* rows;
  uint64_t row_bytes;     // from a row to the next
  Exceptions exceptions;  // of the whole tile
  uint32_t bits;          // 4, 5 or 6
  uint32_t first_row;     // in the tile
  uint32_t n_rows;
  uint32_t cols;
  X16 x;
  int64_t* sums;          // [n_rows], of offset * x

  const uint8_t* row(uint32_t r) const { return rows + r * row_bytes; }
  uint32_t n_blocks() const { return (cols + kClippedColumns - 1) / kClippedColumns; }
};

using ClippedKernel = void (*)(const ClippedTask& task);

// Runs the kernel of so many bits as a task has.
inline void run_clipped(const ClippedTask& task, ClippedKernel four, ClippedKernel five, ClippedKernel six) {
  (task.bits == 4 ? four : task.bits == 5 ? five : six)(task);
}

// sum(difference * x) of the exceptions of each row of the tile. A column past the last one, which only a damaged file has,
// is read as the last.
inline void dot_exceptions_plain(const ClippedTask& task, int64_t sums[kClippedRows]) {
  std::fill_n(sums, kClippedRows, 0);
  for (Exceptions at = task.exceptions; at.any(); at.next()) {
    int32_t of_block = 0;
    for (uint32_t i = 0; i < kExceptions; ++i) {
      of_block += at.difference(i) * task.x.whole[std::min(at.column(i), task.cols - 1)];
    }
    sums[at.row()] += of_block;
  }
}

// Up to kBatchRows rows times some tokens.
struct BatchTask {
  const uint8_t* offsets[kBatchRows];  // those past n_rows repeat a row
  uint32_t n_rows;
  int32_t level_min;
  X16 x;                  // of the first token
  uint64_t token_stride;  // bytes from one token to the next, in each form
  uint32_t n;
  uint32_t n_tokens;
  int64_t* sums;  // of dot_batch: [n_tokens, kBatchRows], of level * x

  // Of dot_batch_groups.
  uint32_t group_size;  // a multiple of kGroupColumns, at most kMostGroup; the last group may have fewer
  const float* scales;  // [n_groups, kBatchRows]
  float* y;             // [n_tokens, kBatchRows], as in a GroupsTask
};

struct Kernels {
  // The offsets of n rows of phrases to out[0..cols), out[stride..stride + cols) and so on, and
  // nothing else. Needs 16 readable bytes past a row.
  tinyqmoe_status (*expand_phrases)(const Dictionary& dictionary, const CodedRow* rows, uint32_t n, uint32_t cols,
                                    uint8_t* out, uint64_t stride);

  // A row of base-3 offsets, plus bias, to out[0..cols). Returns the largest remainder: kBase3Codes and more tell of a
  // byte that is no code.
  uint8_t (*expand_base3)(const uint8_t* packed, uint32_t cols, uint8_t bias, uint8_t* out);

  // Packed offsets of 2, 4 or 8 bits, plus bias, to out[0..cols). Returns the largest offset.
  uint8_t (*unpack)(const uint8_t* packed, uint32_t code_bits, uint32_t cols, uint8_t bias, uint8_t* out);

  // Offsets of 2 or 4 bits to packed ones, from the lowest bits on. n is a multiple of what a byte holds.
  void (*pack)(const uint8_t* offsets, uint32_t n, uint32_t bits, uint8_t* packed);

  // Activations for dot_packed: pack_x of linear_one_token.cc, which serves where this is null. cols: up to the last whole block.
  void (*pack_x)(const X16& x, uint32_t cols, uint32_t code_bits, int8_t* packed);

  // sum(offset * x) of each packed row.
  PackedKernel dot_packed;

  // sum(digit * x) of each row of base-3 codes. Null: decoded first.
  PackedKernel dot_base3;

  // What a clipped row stores, plus bias, to out[0..cols).
  void (*unpack_clipped)(const uint8_t* row, uint32_t bits, uint32_t cols, uint8_t bias, uint8_t* out);

  // sum(offset * x) of each clipped row, its exceptions included.
  ClippedKernel dot_clipped;

  // sums[r] = sum(offsets[r] * x) for all rows.
  void (*dot)(DotTask* task);

  // task->y of four rows with groups. Null: by the functions above, group by group.
  void (*dot_groups)(GroupsTask* task);

  // Many tokens at once. Null: by `dot`, token by token.
  void (*dot_batch)(const BatchTask& task);

  // Likewise, with a scale for each group. Null where dot_batch is.
  void (*dot_batch_groups)(const BatchTask& task);

  // sums[r] = sum(w[r] * x) in the order of linear.h.
  void (*dot_f32)(const float* const w[kDotRows], const float* x, uint32_t n, float sums[kDotRows]);

  // Bits of max |x|: at least 0x7F800000 if an element is not finite.
  uint32_t (*abs_max_bits)(const float* x, uint32_t n);

  // q = round_half_even(x * factor), |q| <= kMostActivation, and its two planes.
  void (*quantize)(const float* x, uint32_t n, float factor, int16_t* whole, int8_t* high, int8_t* low);
};

// Largest alphabet whose offsets are int8s; larger ones take other roads.
constexpr uint32_t kNarrowLevels = 128;

// What a row of the largest offset and one plane comes to still fits an int32: kernels add up planes in it.
static_assert(uint64_t{65535} * 255 * 128 <= INT32_MAX);

// Null when this machine (or this build) lacks the instruction set.
const Kernels* kernels_for(tinyqmoe_isa isa);
const Kernels* scalar_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels(bool vbmi);  // whether the machine has VBMI besides
const Kernels* neon_kernels();
const Kernels* neon_dotprod_kernels();
const Kernels* neon_i8mm_kernels();
const Kernels* simd128_kernels();

// Of the tables without one of their own.
void pack_plain(const uint8_t* offsets, uint32_t n, uint32_t bits, uint8_t* packed);
void unpack_clipped_plain(const uint8_t* row, uint32_t bits, uint32_t cols, uint8_t bias, uint8_t* out);

}  // namespace tinyqmoe
#endif  // TINYQMOE_CORE_KERNELS_H_
