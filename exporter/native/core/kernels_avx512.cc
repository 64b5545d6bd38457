// AVX-512 with VNNI: vpdpbusd adds four products of an unsigned offset and an element of a plane to an int32, so any
// alphabet goes one road and nothing saturates. Rows become offsets as with AVX2. Many tokens meet levels of 16 bits by
// vpdpwssd, which adds two products to an int32.
#if defined(__x86_64__)

#include "kernels_avx2.h"

#include <algorithm>

#include "kernels_batch.h"

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))
#define AVX512_INLINE __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni"), always_inline)) inline

namespace tinyqmoe {
namespace avx512 {
namespace {

// Masked forms with all of the mask set: with the plain ones gcc 12 warns of its own header.
AVX512_INLINE __m256i low_half(__m512i v) { return _mm512_maskz_extracti64x4_epi64(0xF, v, 0); }
AVX512_INLINE __m256i high_half(__m512i v) { return _mm512_maskz_extracti64x4_epi64(0xF, v, 1); }
AVX512_INLINE __m512i twice(__m256i v) { return _mm512_maskz_broadcast_i64x4(0xFF, v); }
AVX512_INLINE int32_t sum16(__m512i v) { return avx2::sum8(_mm256_add_epi32(low_half(v), high_half(v))); }

// 64 elements of packed_x are 32 of the high plane and 32 of the low one: the offsets meet both at once.
template <uint32_t kBits>
AVX512 int64_t dot_packed_bits(const uint8_t* packed, uint32_t n_blocks, const int8_t* packed_x) {
  constexpr uint32_t kPlanes = 8 / kBits;
  __m512i sums[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
  for (uint32_t block = 0; block < n_blocks; ++block, packed += 32) {
    const __m256i v = avx2::load32(packed);
    for (uint32_t k = 0; k < kPlanes; ++k, packed_x += 64) {
      const __m256i offsets = avx2::plane<kBits>(v, static_cast<int>(k));
      sums[k % 2] = _mm512_dpbusd_epi32(sums[k % 2], twice(offsets), _mm512_loadu_si512(packed_x));
    }
  }
  const __m512i all = _mm512_add_epi32(sums[0], sums[1]);
  return 256 * int64_t{avx2::sum8(low_half(all))} + avx2::sum8(high_half(all));
}

void dot_packed(const PackedTask& task) { run_packed(task, dot_packed_bits<2>, dot_packed_bits<4>); }

// The upper bits of a block at their place in its offsets. Each 8 or 16 of them are rotated by themselves.
template <uint32_t kBits>
AVX512 __m512i upper_bits(const uint8_t* upper) {
  if (kBits == 4) return _mm512_setzero_si512();
  if (kBits == 5) {
    const __m512i places = _mm512_setr_epi64(60, 61, 62, 63, 0, 1, 2, 3);
    const __m512i rotated = _mm512_maskz_rorv_epi64(0xFF, _mm512_set1_epi64(load<int64_t>(upper)), places);
    return _mm512_and_si512(rotated, _mm512_set1_epi8(0x10));
  }
  const __m512i places = _mm512_setr_epi64(60, 60, 62, 62, 0, 0, 2, 2);
  const __m512i all = _mm512_maskz_broadcast_i32x4(0xFFFF, avx2::load16(upper));
  return _mm512_and_si512(_mm512_maskz_rorv_epi64(0xFF, all, places), _mm512_set1_epi8(0x30));
}

template <uint32_t kBits>
AVX512 void dot_clipped_bits(const ClippedTask& task) {
  int64_t of_exceptions[kClippedRows];
  avx2::dot_exceptions(task, of_exceptions);
  for (uint32_t r = 0; r < task.n_rows; ++r) {
    const uint8_t* row = task.row(r);
    __m512i high = _mm512_setzero_si512(), low = _mm512_setzero_si512();
    for (uint32_t i = 0; i < task.cols; i += kClippedColumns, row += clipped_block(kBits)) {
      const __m256i v = avx2::load32(row);
      const __m512i lower = _mm512_maskz_inserti64x4(0xFF, twice(avx2::plane<4>(v, 0)), avx2::plane<4>(v, 1), 1);
      const __m512i offsets = _mm512_or_si512(lower, upper_bits<kBits>(row + kClippedLower));
      high = _mm512_dpbusd_epi32(high, offsets, _mm512_loadu_si512(task.x.high + i));
      low = _mm512_dpbusd_epi32(low, offsets, _mm512_loadu_si512(task.x.low + i));
    }
    task.sums[r] = 256 * int64_t{sum16(high)} + sum16(low) + of_exceptions[task.first_row + r];
  }
}

void dot_clipped(const ClippedTask& task) {
  run_clipped(task, dot_clipped_bits<4>, dot_clipped_bits<5>, dot_clipped_bits<6>);
}

AVX512 void dot(DotTask* task) {
  __m512i high[kDotRows];
  __m512i low[kDotRows];
  for (uint32_t r = 0; r < kDotRows; ++r) high[r] = low[r] = _mm512_setzero_si512();
  for (uint32_t i = 0; i < task->n; i += 64) {
    // Masked loads end with the group: nothing past a row is read.
    const __mmask64 columns = task->n - i >= 64 ? ~0ull : (1ull << (task->n - i)) - 1;
    const __m512i x_high = _mm512_maskz_loadu_epi8(columns, task->x.high + i);
    const __m512i x_low = _mm512_maskz_loadu_epi8(columns, task->x.low + i);
    for (uint32_t r = 0; r < kDotRows; ++r) {
      const __m512i offsets = _mm512_maskz_loadu_epi8(columns, task->offsets[r] + i);
      high[r] = _mm512_dpbusd_epi32(high[r], offsets, x_high);
      low[r] = _mm512_dpbusd_epi32(low[r], offsets, x_low);
    }
  }
  for (uint32_t r = 0; r < kDotRows; ++r) task->sums[r] = 256 * int64_t{sum16(high[r])} + sum16(low[r]);
}

// As that of AVX2: a register holds the sums of a token.
struct Tile {
  static constexpr uint32_t kColumns = 512;
  static constexpr uint32_t kTokens = 8;
  static_assert(int64_t{kColumns} * 128 * kMostActivation <= INT32_MAX);
  static_assert(kBatchRows == 16);

  avx2::PairOfColumns pairs[kColumns / 2];

  void fill(const BatchTask& task, uint32_t begin, uint32_t n) { avx2::fill_pairs(task, begin, n, pairs); }

  template <uint32_t kMany, bool kGroups>
  AVX512 void add(BatchPart<kGroups> part) const {
    const int16_t* x[kMany];
    for (uint32_t t = 0; t < kMany; ++t) x[t] = part.whole(t);
    const float* scales = part.scales();
    for (uint64_t i = 0; i < part.n; scales += kGroups ? kBatchRows : 0) {
      const uint64_t end = part.end_of_sum(i);
      __m512i sums[kMany];
      for (uint32_t t = 0; t < kMany; ++t) sums[t] = _mm512_setzero_si512();
      // The loop ends in its middle: gcc copies sums else.
      step<kMany>(x, i, sums);
      for (;; step<kMany>(x, i, sums)) {
        step<kMany>(x, i + 2, sums);
        i += 4;
        if (i >= end) break;
      }
      for (uint32_t t = 0; t < kMany; ++t) {
        avx2::put_sums(low_half(sums[t]), high_half(sums[t]), scales, part.results(t));
      }
    }
  }

  // The products of two columns.
  template <uint32_t kMany>
  AVX512_INLINE void step(const int16_t* const x[kMany], uint64_t i, __m512i sums[kMany]) const {
    const __m512i levels = _mm512_load_si512(pairs + i / 2);
    for (uint32_t t = 0; t < kMany; ++t) {
      sums[t] = _mm512_dpwssd_epi32(sums[t], levels, _mm512_set1_epi32(load<int32_t>(x[t] + i)));
    }
  }
};

}  // namespace
}  // namespace avx512

const Kernels* avx512_kernels() {
  static constexpr Kernels kernels = {
      avx2::expand_phrases, avx2::expand_base3,           avx2::unpack,
      avx2::pack,           avx2::pack_x,                 avx512::dot_packed,
      avx2::dot_base3,      avx2::unpack_clipped,         avx512::dot_clipped,
      avx512::dot,          avx2::dot_groups,             multiply_tiles<avx512::Tile, false>,
      multiply_tiles<avx512::Tile, true>, avx2::dot_f32,  avx2::abs_max_bits,
      avx2::quantize};
  return &kernels;
}

}  // namespace tinyqmoe

#endif  // defined(__x86_64__)
