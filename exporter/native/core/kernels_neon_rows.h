// One token and packed, base-3 or clipped rows by AArch64, four rows side by side. Included by kernels_neon.h, which says
// what TARGET and dot16 are.

#include <arm_neon.h>

#include <algorithm>

#include "kernels.h"

namespace tinyqmoe {
namespace {

// Sums of products with either plane.
struct PlaneSums {
  int32x4_t high = vdupq_n_s32(0);
  int32x4_t low = vdupq_n_s32(0);

  TARGET inline void add(int8x16_t offsets, int8x16_t x_high, int8x16_t x_low) {
    high = dot16(high, offsets, x_high);
    low = dot16(low, offsets, x_low);
  }

  TARGET inline void add(int8x16_t offsets, const int8_t* x_high, const int8_t* x_low) {
    add(offsets, vld1q_s8(x_high), vld1q_s8(x_low));
  }

  int64_t sum() const { return 256 * int64_t{vaddvq_s32(high)} + vaddvq_s32(low); }
};

// The four sums of four lanes each.
inline int32x4_t four_sums(const int32x4_t lanes[kDotRows]) {
  return vpaddq_s32(vpaddq_s32(lanes[0], lanes[1]), vpaddq_s32(lanes[2], lanes[3]));
}

// Offset k of each byte.
template <uint32_t kBits>
inline uint8x16_t plane(uint8x16_t packed, uint32_t k) {
  const uint8x16_t shifted = packed >> static_cast<uint8_t>(k * kBits);
  return k == 8 / kBits - 1 ? shifted : shifted & vdupq_n_u8((1 << kBits) - 1);
}

// ---- packed rows and rows of base-3 codes, half a block at a time ----

static_assert(kPackedBlock == kBase3Block);
constexpr uint32_t kHalfBlock = kPackedBlock / 2;

// Each of the vectors to its part of a block.
template <typename Planes>
inline void put_planes(const Planes& planes, int8_t* to) {
  for (const int8x16_t& plane : planes.val) {
    vst1q_s8(to, plane);
    to += 2 * kPackedBlock;
  }
}

// One plane of the activations for half a block.
inline void pack_half(const int8_t* x, uint32_t code_bits, int8_t* to) {
  code_bits == 2 ? put_planes(vld4q_s8(x), to) : put_planes(vld2q_s8(x), to);
}

void pack_x(const X16& x, uint32_t cols, uint32_t code_bits, int8_t* packed) {
  const uint32_t per_byte = 8 / code_bits;
  for (uint32_t at = 0; at < cols; at += kPackedBlock * per_byte, packed += 2 * kPackedBlock * per_byte) {
    for (uint32_t h = 0; h < kPackedBlock; h += kHalfBlock) {
      const X16 half = x.from(at + h * per_byte);
      pack_half(half.high, code_bits, packed + h);
      pack_half(half.low, code_bits, packed + kPackedBlock + h);
    }
  }
}

template <uint32_t kBits>
struct PackedHalf {
  static constexpr int64_t kSign = 1;

  // Where the activations of a block begin.
  static constexpr uint64_t x_at(uint32_t block) { return uint64_t{block} * kPackedBlock * 2 * (8 / kBits); }

  // The products of so many rows, which share loads of activations.
  template <uint32_t kRows>
  TARGET static inline void add(const uint8x16_t halves[kRows], const int8_t* x, PlaneSums sums[kRows]) {
    for (uint32_t k = 0; k < 8 / kBits; ++k, x += 2 * kPackedBlock) {
      const int8x16_t x_high = vld1q_s8(x), x_low = vld1q_s8(x + kPackedBlock);
      for (uint32_t r = 0; r < kRows; ++r) {
        sums[r].add(vreinterpretq_s8_u8(plane<kBits>(halves[r], k)), x_high, x_low);
      }
    }
  }
};

// Digits are less than zero: a comparison gives 0 or -1.
struct Base3Half {
  static constexpr int64_t kSign = -1;

  static constexpr uint64_t x_at(uint32_t block) { return base3_x_at(block); }

  template <uint32_t kRows>
  TARGET static inline void add(uint8x16_t codes[kRows], const int8_t* x, PlaneSums sums[kRows]) {
    for (uint32_t digit = 0; digit < kBase3Digits; ++digit, x += 4 * kBase3Block) {
      const int8x16_t x_high = vld1q_s8(x), x_low = vld1q_s8(x + 2 * kBase3Block);
      for (uint32_t r = 0; r < kRows; ++r) {
        const uint8x16_t negative = vaddq_u8(vcgeq_u8(codes[r], vdupq_n_u8(86)), vcgeq_u8(codes[r], vdupq_n_u8(171)));
        sums[r].add(vreinterpretq_s8_u8(negative), x_high, x_low);
        codes[r] = vmulq_u8(codes[r], vdupq_n_u8(3));
      }
    }
  }
};

// The sums of so many rows.
template <typename Half, uint32_t kRows>
TARGET inline void dot_rows(const PackedTask& task, uint32_t row) {
  PlaneSums sums[kRows];
  for (uint32_t block = 0; block < task.n_blocks; ++block) {
    for (uint32_t h = 0; h < kPackedBlock; h += kHalfBlock) {
      uint8x16_t halves[kRows];
      for (uint32_t r = 0; r < kRows; ++r) halves[r] = vld1q_u8(task.row(row + r) + block * kPackedBlock + h);
      Half::template add<kRows>(halves, task.packed_x + Half::x_at(block) + h, sums);
    }
  }
  for (uint32_t r = 0; r < kRows; ++r) task.sums[row + r] = Half::kSign * sums[r].sum();
}

template <typename Half>
TARGET void dot_by_fours(const PackedTask& task) {
  uint32_t row = 0;
  for (; row + kDotRows <= task.n_rows; row += kDotRows) dot_rows<Half, kDotRows>(task, row);
  for (; row < task.n_rows; ++row) dot_rows<Half, 1>(task, row);
}

void dot_packed(const PackedTask& task) {
  task.code_bits == 2 ? dot_by_fours<PackedHalf<2>>(task) : dot_by_fours<PackedHalf<4>>(task);
}

void dot_base3(const PackedTask& task) { dot_by_fours<Base3Half>(task); }

// ---- clipped rows ----

// The upper bits of a block: those of the columns 16 * part on are the bits 2 * part and up.
template <uint32_t kBits>
inline uint8x16_t upper_bits(const uint8_t* upper) {
  if (kBits == 4) return vdupq_n_u8(0);
  if (kBits == 6) return vld1q_u8(upper);
  const uint8x8_t v = vld1_u8(upper);
  return vshlq_u8(vcombine_u8(v, v), vcombine_s8(vdup_n_s8(0), vdup_n_s8(-1)));
}

// Adds the products of the columns 16 * kHalf on of a block, which are the lower bits of 16 bytes of each row, and of those
// 32 further, which are the upper ones. Rows share loads of activations.
template <uint32_t kBits, uint32_t kHalf, uint32_t kRows>
TARGET inline void add_clipped(const uint8_t* const blocks[kRows], const uint8x16_t upper[kRows], const int8_t* high,
                               const int8_t* low, PlaneSums sums[kRows]) {
  constexpr uint8_t kLeft = 4 - 2 * kHalf, kRight = 2 * kHalf;
  uint8x16_t lower[kRows];
  for (uint32_t r = 0; r < kRows; ++r) lower[r] = vld1q_u8(blocks[r] + 16 * kHalf);
  for (uint32_t k = 0; k < 2; ++k) {
    const int8x16_t x_high = vld1q_s8(high + 16 * kHalf + 32 * k), x_low = vld1q_s8(low + 16 * kHalf + 32 * k);
    for (uint32_t r = 0; r < kRows; ++r) {
      uint8x16_t offsets = plane<4>(lower[r], k);
      if (kBits > 4) {
        const uint8x16_t at_place = k == 0 ? upper[r] << kLeft : upper[r] >> kRight;
        offsets = vbslq_u8(vdupq_n_u8(kBits == 5 ? 0x10 : 0x30), at_place, offsets);
      }
      sums[r].add(vreinterpretq_s8_u8(offsets), x_high, x_low);
    }
  }
}

// Adds the products of what so many rows store.
template <uint32_t kBits, uint32_t kRows>
TARGET inline void add_clipped_rows(const ClippedTask& task, uint32_t first, int64_t* row_sums) {
  PlaneSums sums[kRows];
  const uint8_t* blocks[kRows];
  for (uint32_t r = 0; r < kRows; ++r) blocks[r] = task.row(first + r);
  for (uint32_t i = 0; i < task.cols; i += kClippedColumns) {
    uint8x16_t upper[kRows];
    for (uint32_t r = 0; r < kRows; ++r) upper[r] = upper_bits<kBits>(blocks[r] + kClippedLower);
    add_clipped<kBits, 0, kRows>(blocks, upper, task.x.high + i, task.x.low + i, sums);
    add_clipped<kBits, 1, kRows>(blocks, upper, task.x.high + i, task.x.low + i, sums);
    for (const uint8_t*& block : blocks) block += clipped_block(kBits);
  }
  for (uint32_t r = 0; r < kRows; ++r) row_sums[r] += sums[r].sum();
}

template <uint32_t kBits>
TARGET void dot_clipped_bits(const ClippedTask& task) {
  int64_t sums[kClippedRows];  // at first of exceptions, of the whole tile
  dot_exceptions_plain(task, sums);
  int64_t* const of_rows = sums + task.first_row;
  uint32_t r = 0;
  for (; r + kDotRows <= task.n_rows; r += kDotRows) add_clipped_rows<kBits, kDotRows>(task, r, of_rows + r);
  for (; r < task.n_rows; ++r) add_clipped_rows<kBits, 1>(task, r, of_rows + r);
  std::copy_n(of_rows, task.n_rows, task.sums);
}

void dot_clipped(const ClippedTask& task) {
  run_clipped(task, dot_clipped_bits<4>, dot_clipped_bits<5>, dot_clipped_bits<6>);
}

}  // namespace
}  // namespace tinyqmoe
