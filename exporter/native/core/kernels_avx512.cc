// AVX-512 with VNNI: vpdpbusd adds four products of an unsigned offset and an element of a plane to an int32, so any
// alphabet goes one road and nothing saturates. Rows become offsets as with AVX2. Many tokens meet levels of 16 bits by
// vpdpwssd, which adds two products to an int32.
#if defined(__x86_64__)

#include "kernels_avx512.h"

#include <algorithm>

#include "kernels_batch.h"

namespace tinyqmoe {
namespace avx512 {
namespace {

// Sums of a row by lanes, of either plane.
struct RowSums {
  __m256i high, low;
};

// Puts the sums of all rows, a row after the other, four of them together.
template <typename Rows>
AVX512_INLINE void put_rows(const Rows& rows, uint32_t n_rows, int64_t* sums) {
  uint32_t row = 0;
  for (; row + kDotRows <= n_rows; row += kDotRows) {
    __m256i high[kDotRows], low[kDotRows];
    for (uint32_t r = 0; r < kDotRows; ++r) {
      const RowSums of_row = rows.sums(row + r);
      high[r] = of_row.high;
      low[r] = of_row.low;
    }
    const __m256i of_high = _mm256_slli_epi64(avx2::four_sums(high), 8);
    avx2::store32(sums + row, _mm256_add_epi64(of_high, avx2::four_sums(low)));
  }
  for (; row < n_rows; ++row) {
    const RowSums of_row = rows.sums(row);
    sums[row] = 256 * int64_t{avx2::sum8(of_row.high)} + avx2::sum8(of_row.low);
  }
}

// A product waits for the one before it in the same sum, so each plane has several.
constexpr uint32_t kSums = 2;

template <uint32_t kBits>
struct PackedRows : FourRows {
  static constexpr uint32_t kPlanes = 8 / kBits;
  static_assert(int64_t{65536} / 64 * 4 * ((1 << kBits) - 1) * 128 <= INT32_MAX);  // of a lane

  AVX512_INLINE PackedRows(const PackedTask& task, uint32_t first) : FourRows(task, first) {
    const int8_t* x = task.packed_x;
    uint32_t block = 0;
    for (; block + 2 <= task.n_blocks; block += 2, x += 128 * kPlanes) add(block * kPackedBlock, true, x);
    if (block < task.n_blocks) add(block * kPackedBlock, false, x);
  }

  // The products of two blocks of each row, or of one.
  AVX512_INLINE void add(uint64_t begin, bool two, const int8_t* x) {
    const __mmask64 bytes = ~__mmask64{0} >> (two ? 0 : kPackedBlock);
    const __m512i mask = _mm512_set1_epi8((1 << kBits) - 1);
    __m512i x_high[kPlanes], x_low[kPlanes];
    for (uint32_t k = 0; k < kPlanes; ++k) {
      x_high[k] = plane_of_blocks<kPlanes>(x + 64 * k, two);
      x_low[k] = plane_of_blocks<kPlanes>(x + 64 * k + 32, two);
    }
    for (uint32_t r = 0; r < kDotRows; ++r) {
      ahead.next();
      const __m512i packed = _mm512_maskz_loadu_epi8(bytes, rows[r] + begin);
      for (uint32_t k = 0; k < kPlanes; ++k) {
        sums.add(r, _mm512_and_si512(_mm512_srli_epi16(packed, k * kBits), mask), x_high[k], x_low[k]);
      }
    }
  }
};

template <uint32_t kBits>
AVX512 void dot_packed_bits(const PackedTask& task) {
  for (uint32_t row = 0; row < task.n_rows; row += kDotRows) PackedRows<kBits>(task, row).put(task, row);
}

void dot_packed(const PackedTask& task) { (task.code_bits == 2 ? dot_packed_bits<2> : dot_packed_bits<4>)(task); }

// Of one row.
struct OneRowSums : PlaneSums<kSums> {
  AVX512_INLINE OneRowSums() {}

  AVX512_INLINE RowSums all() const {
    const __m512i of_high = _mm512_add_epi32(high[0], high[1]), of_low = _mm512_add_epi32(low[0], low[1]);
    return {_mm256_add_epi32(low_half(of_high), high_half(of_high)),
            _mm256_add_epi32(low_half(of_low), high_half(of_low))};
  }
};

// The upper bits of a block at their place in its offsets. Each 8 or 16 of them are rotated by themselves.
template <uint32_t kBits>
AVX512_INLINE __m512i upper_bits(const uint8_t* upper) {
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
struct ClippedRows {
  const ClippedTask& task;

  AVX512_INLINE static __m512i offsets(const uint8_t* block) {
    const __m512i places = _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4), lower_bits = _mm512_set1_epi8(0x0F);
    const __m512i lower = _mm512_maskz_srlv_epi64(0xFF, twice(avx2::load32(block)), places);
    if constexpr (kBits == 4) return _mm512_and_si512(lower, lower_bits);
    constexpr int kFirstAndSecondOrThird = 0xEA;
    return _mm512_ternarylogic_epi64(lower, lower_bits, upper_bits<kBits>(block + kClippedLower),
                                     kFirstAndSecondOrThird);
  }

  AVX512_INLINE void add(const uint8_t* block, uint32_t i, uint32_t k, OneRowSums* sums) const {
    avx2::prefetch(block);
    sums->add(k, offsets(block), _mm512_loadu_si512(task.x.high + i), _mm512_loadu_si512(task.x.low + i));
  }

  AVX512_INLINE RowSums sums(uint32_t r) const {
    constexpr uint32_t kStep = 2 * kClippedColumns;
    const uint8_t* block = task.row(r);
    OneRowSums sums;
    uint32_t i = 0;
    for (; i + kStep <= task.cols; i += kStep, block += 2 * clipped_block(kBits)) {
      add(block, i, 0, &sums);
      add(block + clipped_block(kBits), i + kClippedColumns, 1, &sums);
    }
    for (; i < task.cols; i += kClippedColumns, block += clipped_block(kBits)) add(block, i, 0, &sums);
    return sums.all();
  }
};

template <uint32_t kBits>
AVX512 void dot_clipped_bits(const ClippedTask& task) {
  int64_t of_exceptions[kClippedRows];
  avx2::dot_exceptions(task, of_exceptions);
  put_rows(ClippedRows<kBits>{task}, task.n_rows, task.sums);
  for (uint32_t r = 0; r < task.n_rows; ++r) task.sums[r] += of_exceptions[task.first_row + r];
}

void dot_clipped(const ClippedTask& task) {
  run_clipped(task, dot_clipped_bits<4>, dot_clipped_bits<5>, dot_clipped_bits<6>);
}

// Four rows of bytes side by side.
struct ByteRows {
  const DotTask& task;
  Ahead ahead;
  FourRowSums sums;

  AVX512_INLINE explicit ByteRows(const DotTask& t)
      : task(t), ahead(t.offsets[0], static_cast<uint64_t>(t.offsets[1] - t.offsets[0])) {
    uint32_t i = 0;
    for (; i + 64 <= task.n; i += 64) add(i, ~__mmask64{0});
    // Masked loads end with the group: nothing past a row is read.
    if (i < task.n) add(i, (__mmask64{1} << (task.n - i)) - 1);
  }

  AVX512_INLINE void add(uint32_t i, __mmask64 columns) {
    const __m512i x_high = _mm512_maskz_loadu_epi8(columns, task.x.high + i);
    const __m512i x_low = _mm512_maskz_loadu_epi8(columns, task.x.low + i);
    for (uint32_t r = 0; r < kDotRows; ++r) {
      ahead.next();
      sums.add(r, _mm512_maskz_loadu_epi8(columns, task.offsets[r] + i), x_high, x_low);
    }
  }
};

AVX512 void dot(DotTask* task) { avx2::store32(task->sums, ByteRows(*task).sums.all()); }

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

const Kernels* avx512_kernels(bool vbmi) {
  static constexpr Kernels kernels = {
      avx2::expand_phrases, avx2::expand_base3,           avx2::unpack,
      avx2::pack,           avx2::pack_x,                 avx512::dot_packed,
      avx512::dot_base3,    avx2::unpack_clipped,         avx512::dot_clipped,
      avx512::dot,          avx512::dot_groups,             multiply_tiles<avx512::Tile, false>,
      multiply_tiles<avx512::Tile, true>, avx2::dot_f32,  avx2::abs_max_bits,
      avx2::quantize};
  static const Kernels without = [] {
    Kernels others = kernels;
    others.dot_base3 = avx2_kernels()->dot_base3;
    return others;
  }();
  return vbmi ? &kernels : &without;
}

}  // namespace tinyqmoe

#endif  // defined(__x86_64__)
