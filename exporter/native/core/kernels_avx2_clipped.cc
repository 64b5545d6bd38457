// AVX2: clipped rows.
#if defined(__x86_64__)

#include <cstring>

#include "bytes.h"
#include "kernels_avx2.h"

namespace tinyqmoe {
namespace avx2 {
namespace {

// The upper bits of a block, as often as they have room.
template <uint32_t kBits>
AVX2_INLINE __m256i load_upper(const uint8_t* upper) {
  if (kBits == 4) return _mm256_setzero_si256();
  return kBits == 5 ? _mm256_set1_epi64x(load<int64_t>(upper)) : _mm256_broadcastsi128_si256(load16(upper));
}

// Those of half of the block's columns, at their place in offsets. Each 8 or 16 of them are shifted by themselves.
template <uint32_t kBits>
AVX2_INLINE __m256i upper_bits(__m256i upper, int half) {
  if (kBits == 5) {
    const __m256i shifted = half == 0 ? _mm256_sllv_epi64(upper, _mm256_setr_epi64x(4, 3, 2, 1))
                                      : _mm256_srlv_epi64(upper, _mm256_setr_epi64x(0, 1, 2, 3));
    return _mm256_and_si256(shifted, _mm256_set1_epi8(0x10));
  }
  const __m256i shifted = half == 0 ? _mm256_sllv_epi64(upper, _mm256_setr_epi64x(4, 4, 2, 2))
                                    : _mm256_srlv_epi64(upper, _mm256_setr_epi64x(0, 0, 2, 2));
  return _mm256_and_si256(shifted, _mm256_set1_epi8(0x30));
}

// The offsets of half of a block's columns.
template <uint32_t kBits>
AVX2_INLINE __m256i clipped_half(__m256i lower, __m256i upper, int half) {
  const __m256i offsets = plane<4>(lower, half);
  return kBits == 4 ? offsets : _mm256_or_si256(offsets, upper_bits<kBits>(upper, half));
}

// Where a row goes on, and its products so far with either plane.
struct ClippedSums {
  const uint8_t* row;
  const int8_t* x_high;
  const int8_t* x_low;
  __m256i high, low;

  // As many blocks as int16s can add up, or fewer.
  template <uint32_t kBits>
  AVX2_INLINE void add_blocks(uint32_t n) {
    __m256i high_pairs = _mm256_setzero_si256(), low_pairs = _mm256_setzero_si256();
    for (uint32_t block = 0; block < n; ++block, row += clipped_block(kBits), x_high += 64, x_low += 64) {
      prefetch(row);
      const __m256i lower = load32(row), upper = load_upper<kBits>(row + kClippedLower);
      const __m256i first = clipped_half<kBits>(lower, upper, 0), second = clipped_half<kBits>(lower, upper, 1);
      high_pairs = _mm256_add_epi16(high_pairs, _mm256_maddubs_epi16(first, load32(x_high)));
      low_pairs = _mm256_add_epi16(low_pairs, _mm256_maddubs_epi16(first, load32(x_low)));
      high_pairs = _mm256_add_epi16(high_pairs, _mm256_maddubs_epi16(second, load32(x_high + 32)));
      low_pairs = _mm256_add_epi16(low_pairs, _mm256_maddubs_epi16(second, load32(x_low + 32)));
      keep(&high_pairs);
      keep(&low_pairs);
    }
    high = _mm256_add_epi32(high, widen(high_pairs));
    low = _mm256_add_epi32(low, widen(low_pairs));
  }
};

// One row after the other: two of them side by side took twice as long.
template <uint32_t kBits>
AVX2 void dot_clipped_bits(const ClippedTask& task) {
  constexpr uint32_t kBlocks = int16_steps(1u << kBits) / 2;
  const uint32_t n_blocks = task.n_blocks();
  int64_t of_exceptions[kClippedRows];
  dot_exceptions(task, of_exceptions);
  for (uint32_t r = 0; r < task.n_rows; ++r) {
    ClippedSums sums = {task.row(r), task.x.high, task.x.low, _mm256_setzero_si256(), _mm256_setzero_si256()};
    for (uint32_t i = 0; i < n_blocks / kBlocks; ++i) sums.add_blocks<kBits>(kBlocks);
    if (kBlocks > 1) sums.add_blocks<kBits>(n_blocks % kBlocks);
    task.sums[r] = 256 * int64_t{sum8(sums.high)} + sum8(sums.low) + of_exceptions[task.first_row + r];
  }
}

template <uint32_t kBits>
AVX2 void unpack_clipped_bits(const uint8_t* row, uint32_t cols, uint8_t bias, uint8_t* out) {
  const __m256i biases = _mm256_set1_epi8(static_cast<char>(bias));
  for (uint32_t begin = 0; begin < cols; begin += kClippedColumns, row += clipped_block(kBits)) {
    const __m256i lower = load32(row), upper = load_upper<kBits>(row + kClippedLower);
    const uint32_t left = cols - begin;
    uint8_t last[kClippedColumns];
    uint8_t* const to = left < kClippedColumns ? last : out + begin;
    store32(to, _mm256_add_epi8(clipped_half<kBits>(lower, upper, 0), biases));
    store32(to + 32, _mm256_add_epi8(clipped_half<kBits>(lower, upper, 1), biases));
    if (left < kClippedColumns) std::memcpy(out + begin, last, left);
  }
}

}  // namespace

void dot_clipped(const ClippedTask& task) {
  run_clipped(task, dot_clipped_bits<4>, dot_clipped_bits<5>, dot_clipped_bits<6>);
}

void unpack_clipped(const uint8_t* row, uint32_t bits, uint32_t cols, uint8_t bias, uint8_t* out) {
  const auto kernel = bits == 4   ? unpack_clipped_bits<4>
                      : bits == 5 ? unpack_clipped_bits<5>
                                  : unpack_clipped_bits<6>;
  kernel(row, cols, bias, out);
}

}  // namespace avx2
}  // namespace tinyqmoe

#endif  // defined(__x86_64__)
