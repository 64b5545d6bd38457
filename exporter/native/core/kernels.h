// The inner loops, one table of functions an instruction set. All give the same bits.
//
// Levels travel as *offsets*: uint8, level - level_min. Products are computed on offsets and corrected once:
//   sum(level * x) = sum((offset - shift) * x) + (level_min + shift) * sum(x)
// with shift 0 for alphabets of up to 128 levels, whose products no 16-bit pair sum can overflow, and 128 for larger
// ones, where offset - 128 is again an int8.
#ifndef TINYQMOE_CORE_KERNELS_H_
#define TINYQMOE_CORE_KERNELS_H_

#include <cstdint>

#include "dictionary.h"
#include "tinyqmoe/tinyqmoe.h"

namespace tinyqmoe {

constexpr uint32_t kDotRows = 4;
constexpr uint32_t kDotTokens = 2;

// Packed rows are multiplied in blocks of 32 bytes, see pack_activations in linear.cc.
constexpr uint32_t kPackedBlock = 32;

struct DotTask {
  const uint8_t* offsets[kDotRows];
  const int8_t* x[kDotTokens];
  uint32_t n;
  uint8_t shift;   // 0 or 128
  uint32_t steps;  // with shift 0: how many sums of two products an int16 can hold, at least 1
  int32_t acc[kDotRows][kDotTokens];
};

struct Kernels {
  // The phrases of one row, each offset plus bias, to out[0..cols). Needs 8 readable bytes past the codes. May write
  // up to out[capacity) and no further.
  tinyqmoe_status (*expand_codes)(const Dictionary& dictionary, const uint8_t* codes, uint32_t n_codes, uint32_t cols,
                                  uint8_t bias, uint8_t* out, uint64_t capacity);

  // *acc = sum(offset * x) straight from the phrases. x is zero for kOverrun elements past cols. At most
  // kDirectLevels levels.
  tinyqmoe_status (*dot_codes)(const Dictionary& dictionary, const uint8_t* codes, uint32_t n_codes, uint32_t cols,
                               const int8_t* x, int32_t* acc);

  // Packed offsets of 2, 4 or 8 bits, plus bias, to out[0..cols). Returns the largest offset.
  uint8_t (*unpack)(const uint8_t* packed, uint32_t code_bits, uint32_t cols, uint8_t bias, uint8_t* out);

  // *acc = sum(offset * x) over n_blocks blocks of packed offsets of 2 or 4 bits. Returns the largest offset.
  uint8_t (*dot_packed)(const uint8_t* packed, uint32_t code_bits, uint32_t n_blocks, const int8_t* packed_x,
                        int32_t* acc);

  // Largest of n bytes.
  uint8_t (*largest)(const uint8_t* bytes, uint64_t n);

  // acc[r][t] = sum((offsets[r] - shift) * x[t]) for all rows and the first n_tokens (1 or 2) tokens.
  void (*dot)(DotTask* task, uint32_t n_tokens);

  // sums[r] = sum(w[r] * x) in the order of linear.h.
  void (*dot_f32)(const float* const w[kDotRows], const float* x, uint32_t n, float sums[kDotRows]);

  // Bits of max |x|: at least 0x7F800000 if an element is not finite.
  uint32_t (*abs_max_bits)(const float* x, uint32_t n);

  // out = round_half_even(x * factor).
  void (*quantize)(const float* x, uint32_t n, float factor, int8_t* out);
};

// How many sums of two products of an offset and an activation an int16 can hold. 0 for more than 130 levels.
constexpr uint32_t int16_steps(uint32_t n_levels) { return 32767 / (2 * 127 * (n_levels - 1)); }

// Largest alphabet of dot_codes: its 16-bit sums are looked after once in kCodesPerCheck codewords.
constexpr uint32_t kDirectLevels = 33;
static_assert(int16_steps(kDirectLevels) >= kCodesPerCheck && int16_steps(kDirectLevels + 1) < kCodesPerCheck);

// What the fast kernels fall back to when a row is wrong: checks everything and names the violation.
tinyqmoe_status expand_codes_checked(const Dictionary& dictionary, const uint8_t* codes, uint32_t n_codes,
                                     uint32_t cols, uint8_t bias, uint8_t* out, uint64_t capacity);

// Null when this machine (or this build) lacks the instruction set.
const Kernels* kernels_for(tinyqmoe_isa isa);
const Kernels* scalar_kernels();
const Kernels* avx2_kernels();
const Kernels* neon_kernels();
const Kernels* neon_dotprod_kernels();

}  // namespace tinyqmoe
#endif  // TINYQMOE_CORE_KERNELS_H_
