// Armv8.0: products of 16 int8 as int16. Their sums in pairs are int32 already: two times -128 * -128 do not fit an int16.
// Many tokens meet levels of 16 bits.
#if defined(__aarch64__)

#include <arm_neon.h>

#define TARGET

namespace {

inline int32x4_t dot16(int32x4_t acc, int8x16_t a, int8x16_t b) {
  return vpadalq_s16(vpadalq_s16(acc, vmull_s8(vget_low_s8(a), vget_low_s8(b))), vmull_high_s8(a, b));
}

}  // namespace

#include "kernels_neon.h"
#include "kernels_neon_tile.h"

namespace tinyqmoe {
namespace {

struct Tile : WideTile {
  static constexpr uint32_t kTokens = 4;  // with kDotRows rows, sums, levels and activations are in registers

  template <uint32_t kMany, bool kGroups>
  void add(BatchPart<kGroups> part) const {
    const int16_t* x[kMany];
    BatchResult<kGroups>* results[kMany];
    for (uint32_t t = 0; t < kMany; ++t) x[t] = part.whole(t), results[t] = part.results(t);
    for (uint32_t first = 0; first < part.task.n_rows; first += kDotRows) {
      const float* scales = part.scales();
      for (uint64_t i = 0; i < part.n; scales += kGroups ? kBatchRows : 0) {
        const uint64_t end = part.end_of_sum(i);
        int32x4_t lanes[kMany][kDotRows];
        for (auto& row : lanes) {
          for (int32x4_t& lane : row) lane = vdupq_n_s32(0);
        }
        for (; i < end; i += 8) step<kMany>(x, first, i, lanes);
        for (uint32_t t = 0; t < kMany; ++t) add_sums(four_sums(lanes[t]), scales, results[t], first);
      }
    }
  }

  // The products of eight columns.
  template <uint32_t kMany>
  void step(const int16_t* const x[kMany], uint32_t first, uint64_t i, int32x4_t lanes[kMany][kDotRows]) const {
    int16x8_t v[kMany];
    for (uint32_t t = 0; t < kMany; ++t) v[t] = vld1q_s16(x[t] + i);
    for (uint32_t r = 0; r < kDotRows; ++r) {
      const int16x8_t w = vld1q_s16(levels[first + r] + i);
      for (uint32_t t = 0; t < kMany; ++t) {
        lanes[t][r] = vmlal_s16(lanes[t][r], vget_low_s16(w), vget_low_s16(v[t]));
        lanes[t][r] = vmlal_high_s16(lanes[t][r], w, v[t]);
      }
    }
  }
};

constexpr Kernels kNeon = neon_kernels_of<Tile>();

}  // namespace
}  // namespace tinyqmoe

const tinyqmoe::Kernels* tinyqmoe::neon_kernels() { return &kNeon; }

#endif  // defined(__aarch64__)
