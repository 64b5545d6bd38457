// Products with a scale for each group of columns: of one token with four rows side by side, and of many.
#include "product.h"

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

namespace tinyqmoe {

bool suits_groups(const X16Product& p) {
  const bool whole = p.group_size % kGroupColumns == 0 && p.cols() % p.group_size == 0;
  return p.n_tokens == 1 && p.n_groups > 1 && whole && p.group_size <= kMostGroup && p.kernels.dot_groups != nullptr;
}

void keep_corrections(const X16Product& p) {
  int32_t* out = p.kept_corrections();
  for (uint32_t g = 0; g < p.n_groups; ++g) {
    const int32_t correction = static_cast<int32_t>(p.correction(p.kept_sums()[g]));  // fits: kMostGroup
    for (uint32_t r = 0; r < kDotRows; ++r) *out++ = correction;
  }
}

GroupsTask groups_task(const X16Product& p, uint32_t bits, const int8_t* packed_x) {
  GroupsTask task;
  task.bits = bits;
  task.n_levels = p.tensor.info.n_levels;
  task.cols = p.cols();
  task.group_size = p.group_size;
  task.x = p.x(0);
  task.packed_x = packed_x;
  task.x_sums = p.kept_sums();
  task.corrections = p.kept_corrections();
  task.stored_scales = p.scales;
  task.scales = reinterpret_cast<float*>(p.scratch + p.at.float_rows);
  return task;
}

void multiply_groups(const X16Product& p, GroupsTask* task, uint32_t first, uint32_t n_rows) {
  for (uint32_t r = 0; r < kDotRows; ++r) {
    task->first_scales[r] = uint64_t{first + std::min(r, n_rows - 1)} * p.n_groups;
  }
  p.kernels.dot_groups(task);
  const float x_scale = p.x_scales[0];
  float* const y = p.y + first;
  for (uint32_t r = 0; r < n_rows; ++r) y[r] = x_scale * task->y[r];
}

bool suits_batch_groups(const X16Product& p) {
  const bool fits = p.group_size % kGroupColumns == 0 && p.group_size <= kMostGroup;
  return p.n_groups > 1 && fits && p.kernels.dot_batch_groups != nullptr;
}

void multiply_batch_groups(const X16Product& p, BatchTask task, uint32_t first) {
  static_assert(kBatchRows <= kDotRows * (kGroupColumns + 1) / 2);  // scales fit: two groups have 33 columns or more
  float* const scales = reinterpret_cast<float*>(p.scratch + p.at.float_rows);
  for (uint32_t r = 0; r < kBatchRows; ++r) {
    const uint64_t row = first + std::min(r, task.n_rows - 1);
    p.scales.put(row * p.n_groups, p.n_groups, kBatchRows, scales + r);
  }
  task.group_size = p.group_size;
  task.scales = scales;
  task.y = reinterpret_cast<float*>(p.scratch + p.at.sums);
  p.kernels.dot_batch_groups(task);
  for (uint32_t t = 0; t < p.n_tokens; ++t) {
    const float* const y = task.y + uint64_t{t} * kBatchRows;
    for (uint32_t r = 0; r < task.n_rows; ++r) p.store_row(first + r, t, y[r]);
  }
}

}  // namespace tinyqmoe
