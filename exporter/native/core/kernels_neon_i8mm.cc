// Armv8.6 smmla, for many tokens: two rows of eight levels times the two planes of eight activations. All else is as with
// sdot, and so is what the header of clang before 16 hides.
#if defined(__aarch64__)

#include <arm_neon.h>

#include "kernels.h"

#if defined(__clang__) && __clang_major__ < 16 && !(defined(__ARM_FEATURE_DOTPROD) && defined(__ARM_FEATURE_MATMUL_INT8))

const tinyqmoe::Kernels* tinyqmoe::neon_i8mm_kernels() { return nullptr; }

#else

#if defined(__clang__)
#define TARGET __attribute__((target("i8mm")))
#else
#define TARGET __attribute__((target("arch=armv8.2-a+i8mm")))
#endif

#include "kernels_neon_tile.h"

namespace tinyqmoe {
namespace {

// Eight columns of two rows in a vector: four pairs of rows, then the next eight columns.
struct PairOrder {
  static constexpr uint32_t kRows = 8;

  static void put(const int8x16_t rows[kRows], int8_t* out) {
    for (uint32_t r = 0; r < kRows; r += 2, out += 16) {
      const int64x2_t a = vreinterpretq_s64_s8(rows[r]), b = vreinterpretq_s64_s8(rows[r + 1]);
      vst1q_s8(out, vreinterpretq_s8_s64(vzip1q_s64(a, b)));
      vst1q_s8(out + kRows / 2 * 16, vreinterpretq_s8_s64(vzip2q_s64(a, b)));
    }
  }
};

constexpr uint32_t kPairs = PairOrder::kRows / 2;

// Of a token and a pair of rows: of a row the high and the low plane, then of the next.
template <uint32_t kMany>
using PairSums = int32x4_t[kMany][kPairs];

// Eight columns of one token.
TARGET __attribute__((always_inline)) inline void add_pairs(const int8_t* levels, int8x16_t x, int32x4_t sums[kPairs]) {
  for (uint32_t p = 0; p < kPairs; ++p) {
    sums[p] = vmmlaq_s32(sums[p], vld1q_s8(levels + 16 * p), x);
  }
}

struct Tile : LevelTile<PairOrder> {
  static constexpr uint32_t kTokens = 4;  // with kRows rows, sums, levels and activations are in registers

  template <uint32_t kMany, bool kGroups>
  TARGET void add(BatchPart<kGroups> part) const {
    const int8_t *high[kMany], *low[kMany];
    BatchResult<kGroups>* results[kMany];
    for (uint32_t t = 0; t < kMany; ++t) high[t] = part.high(t), low[t] = part.low(t), results[t] = part.results(t);
    for (uint32_t first = 0; first < part.task.n_rows; first += PairOrder::kRows) {
      const int8_t* w = levels[first / PairOrder::kRows];
      const float* scales = part.scales();
      for (uint64_t i = 0; i < part.n; scales += kGroups ? kBatchRows : 0) {
        const uint64_t end = part.end_of_sum(i);
        PairSums<kMany> sums;
        for (auto& token : sums) {
          for (int32x4_t& pair : token) pair = vdupq_n_s32(0);
        }
        for (; i < end; i += 16, w += kBlockBytes) step<kMany>(w, high, low, i, sums);
        for (uint32_t t = 0; t < kMany; ++t) {
          for (uint32_t p = 0; p < kPairs; p += 2) {
            add_planes(vuzp1q_s32(sums[t][p], sums[t][p + 1]), vuzp2q_s32(sums[t][p], sums[t][p + 1]), scales,
                       results[t], first + 2 * p);
          }
        }
      }
    }
  }

  // The products of sixteen columns from i on.
  template <uint32_t kMany>
  TARGET __attribute__((always_inline)) static inline void step(const int8_t* w, const int8_t* const high[kMany],
                                                                const int8_t* const low[kMany], uint64_t i,
                                                                PairSums<kMany>& sums) {
    int8x16_t last[kMany];  // eight activations of a token, their high plane and then their low one
    for (uint32_t t = 0; t < kMany; ++t) {
      const int64x2_t h = vreinterpretq_s64_s8(vld1q_s8(high[t] + i));
      const int64x2_t l = vreinterpretq_s64_s8(vld1q_s8(low[t] + i));
      add_pairs(w, vreinterpretq_s8_s64(vzip1q_s64(h, l)), sums[t]);
      last[t] = vreinterpretq_s8_s64(vzip2q_s64(h, l));
    }
    for (uint32_t t = 0; t < kMany; ++t) add_pairs(w + kPairs * 16, last[t], sums[t]);
  }
};

}  // namespace
}  // namespace tinyqmoe

const tinyqmoe::Kernels* tinyqmoe::neon_i8mm_kernels() {
  static const Kernels kernels = [] {
    Kernels sdot = *neon_dotprod_kernels();
    sdot.dot_batch = multiply_tiles<Tile, false>;
    sdot.dot_batch_groups = multiply_tiles<Tile, true>;
    return sdot;
  }();
  return &kernels;
}

#endif
#endif  // defined(__aarch64__)
