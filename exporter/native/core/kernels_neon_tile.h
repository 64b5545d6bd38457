// What the AArch64 kernels of many tokens share: where their sums go, and tiles of int8 levels for those that multiply by
// the two planes of activations.
#ifndef TINYQMOE_CORE_KERNELS_NEON_TILE_H_
#define TINYQMOE_CORE_KERNELS_NEON_TILE_H_

#include <arm_neon.h>

#include <cstring>

#include "kernels_batch.h"

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

namespace tinyqmoe {

// kRows rows of sixteen columns are in the order in which an instruction multiplies them.
// Order: kRows, put(rows, out) of one vector of sixteen levels a row, kRows vectors to out; `out` of the next sixteen
// columns follows.
template <typename Order>
struct LevelTile {
  static constexpr uint32_t kColumns = 1024;
  static constexpr uint32_t kBlockBytes = Order::kRows * 16;

  alignas(64) int8_t levels[kBatchRows / Order::kRows][kColumns * Order::kRows];

  void fill(const BatchTask& task, uint32_t begin, uint32_t n) {
    for (uint32_t r = 0; r < task.n_rows; r += Order::kRows) {
      int8_t* out = levels[r / Order::kRows];
      uint32_t i = 0;
      for (; i + 16 <= n; i += 16, out += kBlockBytes) put_block(task, r, begin + i, out);
      if (i < n) put_last(task, r, begin + i, n - i, out);
    }
  }

 private:
  static void put_block(const BatchTask& task, uint32_t first, uint32_t column, int8_t* out) {
    const int8x16_t bias = vdupq_n_s8(static_cast<int8_t>(task.level_min));
    int8x16_t rows[Order::kRows];
    for (uint32_t r = 0; r < Order::kRows; ++r) {
      rows[r] = vaddq_s8(vreinterpretq_s8_u8(vld1q_u8(task.offsets[first + r] + column)), bias);
    }
    Order::put(rows, out);
  }

  // Fewer than sixteen columns, and zeros: nothing past a row is read.
  static void put_last(const BatchTask& task, uint32_t first, uint32_t column, uint32_t n, int8_t* out) {
    int8x16_t rows[Order::kRows];
    for (uint32_t r = 0; r < Order::kRows; ++r) {
      int8_t row[16] = {};
      for (uint32_t i = 0; i < n; ++i) {
        row[i] = static_cast<int8_t>(task.offsets[first + r][column + i] + task.level_min);
      }
      rows[r] = vld1q_s8(row);
    }
    Order::put(rows, out);
  }
};

// Adds the sums of four rows from `first` on to the results of a batch: of groups, each one's float times its scale.
inline void add_sums(int32x4_t sums, const float*, int64_t* results, uint32_t first) {
  int64_t* const to = results + first;
  vst1q_s64(to, vaddw_s32(vld1q_s64(to), vget_low_s32(sums)));
  vst1q_s64(to + 2, vaddw_high_s32(vld1q_s64(to + 2), sums));
}
inline void add_sums(int32x4_t sums, const float* scales, float* y, uint32_t first) {
  const float32x4_t terms = vmulq_f32(vcvtq_f32_s32(sums), vld1q_f32(scales + first));
  vst1q_f32(y + first, vaddq_f32(vld1q_f32(y + first), terms));
}

// Likewise 256 * high + low, which fits an int32 where it is of a group.
inline void add_planes(int32x4_t high, int32x4_t low, const float*, int64_t* results, uint32_t first) {
  int64_t* const to = results + first;
  const int64x2_t lower = vaddw_s32(vshll_n_s32(vget_low_s32(high), 8), vget_low_s32(low));
  const int64x2_t upper = vaddw_high_s32(vshll_high_n_s32(high, 8), low);
  vst1q_s64(to, vaddq_s64(vld1q_s64(to), lower));
  vst1q_s64(to + 2, vaddq_s64(vld1q_s64(to + 2), upper));
}
inline void add_planes(int32x4_t high, int32x4_t low, const float* scales, float* y, uint32_t first) {
  add_sums(vaddq_s32(vshlq_n_s32(high, 8), low), scales, y, first);
}

}  // namespace tinyqmoe
#endif  // TINYQMOE_CORE_KERNELS_NEON_TILE_H_
