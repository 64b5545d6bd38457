// AVX-512 with VBMI: vpermi2b looks up 64 bytes in a table of 128 at once, and two of them in one of 256. So a code becomes
// four of its digits in one byte.
#if defined(__x86_64__)

#include <array>

#include "kernels_avx512.h"

#define VBMI __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")))
#define VBMI_INLINE __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi"), always_inline)) inline

namespace tinyqmoe {
namespace avx512 {
namespace {

// Of each code all digits but the first, two bits each, from the lowest on.
constexpr std::array<uint8_t, 256> digits_of_codes() {
  std::array<uint8_t, 256> table{};
  for (uint32_t code = 0; code < 256; ++code) {
    uint32_t rest = 3 * code & 255, digits = 0;
    for (uint32_t digit = 1; digit < kBase3Digits; ++digit, rest = 3 * rest & 255) {
      digits |= (3 * rest >> 8) << 2 * (digit - 1);
    }
    table[code] = static_cast<uint8_t>(digits);
  }
  return table;
}

alignas(64) constexpr std::array<uint8_t, 256> kDigits = digits_of_codes();

struct DigitTable {
  __m512i quarters[4];

  VBMI_INLINE DigitTable() {
    for (uint32_t i = 0; i < 4; ++i) quarters[i] = _mm512_load_si512(kDigits.data() + 64 * i);
  }

  VBMI_INLINE __m512i digits(__m512i codes) const {
    const __m512i below = _mm512_permutex2var_epi8(quarters[0], codes, quarters[1]);
    const __m512i above = _mm512_permutex2var_epi8(quarters[2], codes, quarters[3]);
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), below, above);
  }
};

// floor(3 * code / 256) reaches 1 at 86 and 2 at 171.
VBMI_INLINE __m512i first_digits(__m512i codes) {
  const __mmask64 at_least_one = _mm512_cmpgt_epu8_mask(codes, _mm512_set1_epi8(85));
  const __mmask64 at_least_two = _mm512_cmpgt_epu8_mask(codes, _mm512_set1_epi8(static_cast<char>(170)));
  const __m512i one = _mm512_set1_epi8(1), digits = _mm512_maskz_mov_epi8(at_least_one, one);
  return _mm512_mask_add_epi8(digits, at_least_two, digits, one);
}

struct Base3Rows : FourRows {
  static_assert(int64_t{65536} / kBase3Columns * kBase3Digits * 4 * 2 * 128 <= INT32_MAX);  // of a lane

  DigitTable table;

  VBMI_INLINE Base3Rows(const PackedTask& task, uint32_t first) : FourRows(task, first) {
    const int8_t* x = task.packed_x;
    uint32_t block = 0;
    for (; block + 2 <= task.n_blocks; block += 2, x += kBase3PairX) add(block * kBase3Block, ~__mmask64{0}, x);
    if (block < task.n_blocks) add(block * kBase3Block, ~__mmask64{0} >> kBase3Block, x);
  }

  // The products of two blocks of each row, or of one.
  VBMI_INLINE void add(uint64_t begin, __mmask64 bytes, const int8_t* x) {
    __m512i others[kDotRows];
    const __m512i x_high = _mm512_loadu_si512(x), x_low = _mm512_loadu_si512(x + 64);
    for (uint32_t r = 0; r < kDotRows; ++r) {
      ahead.next();
      const __m512i codes = _mm512_maskz_loadu_epi8(bytes, rows[r] + begin);
      others[r] = table.digits(codes);
      sums.add(r, first_digits(codes), x_high, x_low);
    }
    add_others<0>(others, x + 128);
    add_others<2>(others, x + 256);
    add_others<4>(others, x + 384);
    add_others<6>(others, x + 512);
  }

  // The digit of each code that lies at a bit of `others`.
  template <int kBit>
  VBMI_INLINE void add_others(const __m512i others[kDotRows], const int8_t* x) {
    const __m512i x_high = _mm512_loadu_si512(x), x_low = _mm512_loadu_si512(x + 64), mask = _mm512_set1_epi8(3);
    for (uint32_t r = 0; r < kDotRows; ++r) {
      sums.add(r, _mm512_and_si512(_mm512_srli_epi16(others[r], kBit), mask), x_high, x_low);
    }
  }
};

}  // namespace

VBMI void dot_base3(const PackedTask& task) {
  for (uint32_t row = 0; row < task.n_rows; row += kDotRows) Base3Rows(task, row).put(task, row);
}

}  // namespace avx512
}  // namespace tinyqmoe

#endif  // defined(__x86_64__)
