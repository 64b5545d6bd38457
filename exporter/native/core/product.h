// A product of a coded matrix with activations: what the parts of one call share.
#ifndef TINYQMOE_CORE_PRODUCT_H_
#define TINYQMOE_CORE_PRODUCT_H_

#include <algorithm>

#include "activations.h"
#include "kernels.h"
#include "linear.h"
#include "rows.h"
#include "scales.h"

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

namespace tinyqmoe {

// Fits: 65535 columns of 32512 are less than 2^31.
inline int32_t sum_of(const int16_t* x, uint32_t n) {
  int32_t sum = 0;
  for (uint32_t i = 0; i < n; ++i) sum += x[i];
  return sum;
}

// One call of linear_*: what its parts share.
struct Product {
  const tinyqmoe_tensor& tensor;
  const Kernels& kernels;
  Scales scales;
  uint32_t group_size;
  uint32_t n_groups;
  uint32_t n_tokens;
  uint32_t row_begin;
  uint32_t row_end;
  ScratchLayout at;
  uint8_t* scratch;
  float* y;

  uint32_t cols() const { return tensor.info.cols; }
  uint32_t group_end(uint32_t g) const { return std::min<uint64_t>(cols(), (uint64_t{g} + 1) * group_size); }
  float scale(uint32_t row, uint32_t g) const { return scales[uint64_t{row} * n_groups + g]; }
  float* y_at(uint32_t row, uint32_t token) const { return y + uint64_t{token} * tensor.info.rows + row; }
};

// Offsets of up to block_rows rows: in place where a byte is a level, else expanded.
struct RowBlock {
  const uint8_t* rows;
  uint64_t stride;
  uint32_t n;

  // Rows past the end repeat the last one; their results are dropped.
  const uint8_t* row(uint32_t r) const { return rows + std::min(r, n - 1) * stride; }
};

// n rows from `row` on, which the cursor comes to next.
inline tinyqmoe_status load_rows(const Product& p, uint32_t row, uint32_t n, RowCursor* cursor, RowBlock* block) {
  const tinyqmoe_tensor& tensor = p.tensor;
  if (tensor.info.codec == kRaw && tensor.info.code_bits == 8) {
    *block = {tensor.payload + row * tensor.row_bytes, tensor.row_bytes, n};
    return TINYQMOE_OK;
  }
  uint8_t* const out = p.scratch + p.at.rows;
  *block = {out, p.at.row_stride, n};
  return expand_rows(tensor, p.kernels, cursor, n, {0, out, p.at.row_stride});
}

// A call with quantized activations.
struct X16Product : Product {
  const void* quantized;
  const float* x_scales;
  bool keep_sums;

  X16 x(uint32_t token) const { return x16_at(quantized, cols(), token); }
  bool is_batch() const { return n_tokens > 1 && kernels.dot_batch != nullptr; }
  int32_t* kept_sums() const { return reinterpret_cast<int32_t*>(scratch + at.x_sums); }

  // Of a GroupsTask, behind its scales: there is room for each column, and a group has kGroupColumns or more.
  int32_t* kept_corrections() const {
    return reinterpret_cast<int32_t*>(scratch + at.float_rows) + uint64_t{kDotRows} * n_groups;
  }

  int32_t x_sum(uint32_t token, uint32_t g) const {
    if (keep_sums) return kept_sums()[uint64_t{token} * n_groups + g];
    const uint32_t begin = g * group_size;
    return sum_of(x(token).whole + begin, group_end(g) - begin);
  }

  // What a sum over offsets lacks to be one over levels.
  int64_t correction(int32_t x_sum) const { return tensor.info.level_min * int64_t{x_sum}; }

  // Adds a group of a row, of this scale, to what the groups before it gave.
  void add_group(float scale, uint32_t token, int64_t acc, float* y) const {
    if (n_groups == 1) {
      *y = static_cast<float>(acc) * (x_scales[token] * scale);
    } else {
      const float term = static_cast<float>(acc) * scale;
      *y += term;
    }
  }

  void store_row(uint32_t row, uint32_t token, float y) const {
    *y_at(row, token) = n_groups == 1 ? y : x_scales[token] * y;
  }
};

// Where the sums over offsets of rows go, of a product with one group.
class Results {
 public:
  Results(const X16Product& p, uint32_t token) : Results(p, token, p.tensor.info.level_min) {}

  // level_min: the level of offset 0.
  Results(const X16Product& p, uint32_t token, int64_t level_min)
      : correction_(level_min * p.x_sum(token, 0)),
        x_scale_(p.x_scales[token]),
        scales_(p.scales),
        y_(p.y_at(0, token)) {}

  static constexpr uint32_t kMost = 16;  // rows of a call

  // The sums of n rows from `row` on.
  void put(uint32_t row, uint32_t n, const int64_t* sums) const {
    float scales[kMost];
    scales_.put(row, n, 1, scales);
    for (uint32_t r = 0; r < n; ++r) y_[row + r] = static_cast<float>(sums[r] + correction_) * (x_scale_ * scales[r]);
  }

 private:
  int64_t correction_;
  float x_scale_;
  Scales scales_;
  float* y_;
};

inline void keep_x_sums(X16Product* p) {
  p->keep_sums = false;
  if (p->n_groups > p->cols() / kMinFastGroup + 1) return;
  int32_t* sums = p->kept_sums();
  for (uint32_t t = 0; t < p->n_tokens; ++t) {
    const int16_t* const x = p->x(t).whole;
    for (uint32_t g = 0; g < p->n_groups; ++g) {
      const uint32_t begin = g * p->group_size;
      *sums++ = sum_of(x + begin, p->group_end(g) - begin);
    }
  }
  p->keep_sums = true;
}

// One token, groups for which there is a kernel; linear_groups.cc. Packed rows: where groups end on blocks too.
bool suits_groups(const X16Product& p);

// What groups_task points to. Needs the kept sums.
void keep_corrections(const X16Product& p);

// What all rows share: they are offsets, of 8 bits, or packed ones with their activations.
GroupsTask groups_task(const X16Product& p, uint32_t bits, const int8_t* packed_x);

// The n_rows rows of the task, of which those past the last repeat it. They are the product's from `first` on.
void multiply_groups(const X16Product& p, GroupsTask* task, uint32_t first, uint32_t n_rows);

// Many tokens, groups for which there is a kernel; linear_groups.cc.
bool suits_batch_groups(const X16Product& p);

// A batch of rows from `first` on, of all columns, of which only what a kernel of groups adds is missing.
void multiply_batch_groups(const X16Product& p, BatchTask task, uint32_t first);

// Of one token, with rows that are not decoded first; linear_one_token.cc. Packed rows: groups that end on blocks. Clipped
// and base-3 rows: one group.
void multiply_packed(const X16Product& p);
void multiply_clipped(const X16Product& p);
void multiply_base3(const X16Product& p);

}  // namespace tinyqmoe
#endif  // TINYQMOE_CORE_PRODUCT_H_
