// Armv8.2 sdot. The header of clang before 16 hides vdotq_s32 unless the whole file is built for it; there this
// file has no kernels and the Armv8.0 ones serve.
#if defined(__aarch64__)

#include <arm_neon.h>

#include "kernels.h"

#if defined(__clang__) && __clang_major__ < 16 && !defined(__ARM_FEATURE_DOTPROD)

const tinyqmoe::Kernels* tinyqmoe::neon_dotprod_kernels() { return nullptr; }

#else

#if defined(__clang__)
#define TARGET __attribute__((target("dotprod")))
#else
#define TARGET __attribute__((target("arch=armv8.2-a+dotprod")))
#endif

namespace {

TARGET inline int32x4_t dot16(int32x4_t acc, int8x16_t a, int8x16_t b) { return vdotq_s32(acc, a, b); }

}  // namespace

#include "kernels_neon.h"
#include "kernels_neon_tile.h"

namespace tinyqmoe {
namespace {

// Four columns of four rows in a vector, the first four rows before the others: sdot by a lane adds up each row in a lane
// of its own.
struct QuadOrder {
  static constexpr uint32_t kRows = 8;

  static void put(const int8x16_t rows[kRows], int8_t* out) {
    for (uint32_t half = 0; half < kRows; half += 4, out += 16) {
      int64x2_t even[2], odd[2];  // columns 0 to 3 and 8 to 11, and the others, of two rows
      for (uint32_t pair = 0; pair < 2; ++pair) {
        const int32x4_t a = vreinterpretq_s32_s8(rows[half + 2 * pair]);
        const int32x4_t b = vreinterpretq_s32_s8(rows[half + 2 * pair + 1]);
        even[pair] = vreinterpretq_s64_s32(vtrn1q_s32(a, b));
        odd[pair] = vreinterpretq_s64_s32(vtrn2q_s32(a, b));
      }
      vst1q_s8(out, vreinterpretq_s8_s64(vtrn1q_s64(even[0], even[1])));
      vst1q_s8(out + 2 * 16, vreinterpretq_s8_s64(vtrn1q_s64(odd[0], odd[1])));
      vst1q_s8(out + 4 * 16, vreinterpretq_s8_s64(vtrn2q_s64(even[0], even[1])));
      vst1q_s8(out + 6 * 16, vreinterpretq_s8_s64(vtrn2q_s64(odd[0], odd[1])));
    }
  }
};

// Sums of tokens and eight rows.
template <uint32_t kMany>
struct QuadSums {
  int32x4_t high[kMany][2];
  int32x4_t low[kMany][2];
};

// Four columns: lane kLane of sixteen activations of each token.
template <int kLane, uint32_t kMany>
TARGET __attribute__((always_inline)) inline void add_quad(const int8_t* levels, const int8x16_t high[kMany],
                                                           const int8x16_t low[kMany], QuadSums<kMany>* sums) {
  for (uint32_t h = 0; h < 2; ++h) {
    const int8x16_t w = vld1q_s8(levels + 16 * (2 * kLane + h));
    for (uint32_t t = 0; t < kMany; ++t) {
      sums->high[t][h] = vdotq_laneq_s32(sums->high[t][h], w, high[t], kLane);
      sums->low[t][h] = vdotq_laneq_s32(sums->low[t][h], w, low[t], kLane);
    }
  }
}

struct Tile : LevelTile<QuadOrder> {
  static constexpr uint32_t kTokens = 4;

  template <uint32_t kMany, bool kGroups>
  TARGET void add(BatchPart<kGroups> part) const {
    const int8_t *x_high[kMany], *x_low[kMany];
    BatchResult<kGroups>* results[kMany];
    for (uint32_t t = 0; t < kMany; ++t) x_high[t] = part.high(t), x_low[t] = part.low(t), results[t] = part.results(t);
    for (uint32_t first = 0; first < part.task.n_rows; first += QuadOrder::kRows) {
      const int8_t* w = levels[first / QuadOrder::kRows];
      const float* scales = part.scales();
      for (uint64_t i = 0; i < part.n; scales += kGroups ? kBatchRows : 0) {
        const uint64_t end = part.end_of_sum(i);
        QuadSums<kMany> sums;
        for (uint32_t t = 0; t < kMany; ++t) {
          for (uint32_t h = 0; h < 2; ++h) sums.high[t][h] = sums.low[t][h] = vdupq_n_s32(0);
        }
        for (; i < end; i += 16, w += kBlockBytes) {
          int8x16_t high[kMany], low[kMany];
          for (uint32_t t = 0; t < kMany; ++t) high[t] = vld1q_s8(x_high[t] + i), low[t] = vld1q_s8(x_low[t] + i);
          add_quad<0, kMany>(w, high, low, &sums);
          add_quad<1, kMany>(w, high, low, &sums);
          add_quad<2, kMany>(w, high, low, &sums);
          add_quad<3, kMany>(w, high, low, &sums);
        }
        for (uint32_t t = 0; t < kMany; ++t) {
          for (uint32_t h = 0; h < 2; ++h) add_planes(sums.high[t][h], sums.low[t][h], scales, results[t], first + 4 * h);
        }
      }
    }
  }
};

constexpr Kernels kNeon = neon_kernels_of<Tile>();

}  // namespace
}  // namespace tinyqmoe

const tinyqmoe::Kernels* tinyqmoe::neon_dotprod_kernels() { return &kNeon; }

#endif
#endif  // defined(__aarch64__)
