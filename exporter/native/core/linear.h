// Products of a coded matrix with activations.
//
// linear_x16. All sums over columns are exact integers, so their order is free. The float part is as tinyqmoe.h
// says; a sum over groups starts from 0.0f.
//
// linear_f32. Within a group of n columns, with w the level as a float, eight partial sums start from 0.0f:
//   p[k] += w[i] * x[i]   for i = k, k + 8, k + 16, ... below n, product and sum rounded separately,
// and the group's sum is s = ((p[0] + p[4]) + (p[2] + p[6])) + ((p[1] + p[5]) + (p[3] + p[7])).
// Then y = 0.0f + s_0 * scale_0 + s_1 * scale_1 + ..., from the left.
#ifndef TINYQMOE_CORE_LINEAR_H_
#define TINYQMOE_CORE_LINEAR_H_

#include <cstdint>

#include "rows.h"

namespace tinyqmoe {

// Activation sums of one group are kept for groups of at least this many columns; smaller groups go to the scalar
// kernel and get their sums one by one.
constexpr uint32_t kMinFastGroup = 32;

// Where things lie in the caller's scratch. Parts start on 64 bytes.
struct ScratchLayout {
  uint64_t row_stride;     // of expanded rows
  uint32_t block_rows;     // rows expanded at a time, a multiple of kDotRows
  uint64_t x_sums;         // int32 [n_tokens][max groups]
  uint64_t rows;           // uint8 [block_rows][row_stride]
  uint64_t packed_x;       // int8, two planes, see pack_x
  uint64_t float_rows;     // float [kDotRows][cols], or scales of groups
  uint64_t sums;           // int64 [n_tokens][kBatchRows], or as many floats, of more than one token
  uint64_t total;
};

ScratchLayout scratch_layout(const tinyqmoe_info& info, uint32_t n_tokens);

}  // namespace tinyqmoe
#endif  // TINYQMOE_CORE_LINEAR_H_
