// Plain C++: the yardstick of the other kernels, and the checked decoder that names what is wrong with a row.
#include <algorithm>

#include "bytes.h"
#include "kernels.h"

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

namespace tinyqmoe {

tinyqmoe_status expand_codes_checked(const Dictionary& dictionary, const uint8_t* codes, uint32_t n_codes,
                                     uint32_t cols, uint8_t bias, uint8_t* out, uint64_t) {
  const DictionaryShape& shape = dictionary.shape;
  for (uint32_t i = 0; i < n_codes; ++i) {
    if (code_at(codes, shape.code_bits, i) >= shape.n_entries) return TINYQMOE_BAD_CODE;
  }
  uint32_t pos = 0;
  for (uint32_t i = 0; i < n_codes; ++i) {
    if (pos >= cols) return TINYQMOE_BAD_ROW_LENGTH;
    const uint32_t code = code_at(codes, shape.code_bits, i);
    const uint8_t* phrase = dictionary.phrases + uint64_t{code} * shape.cap;
    const uint32_t length = dictionary.lengths[code];
    const uint32_t kept = std::min(length, cols - pos);
    for (uint32_t k = 0; k < kept; ++k) out[pos + k] = static_cast<uint8_t>(phrase[k] + bias);
    pos += length;
  }
  return pos >= cols ? TINYQMOE_OK : TINYQMOE_BAD_ROW_LENGTH;
}

namespace {

tinyqmoe_status dot_codes(const Dictionary& dictionary, const uint8_t* codes, uint32_t n_codes, uint32_t cols,
                          const X16& x, int64_t* sum) {
  const DictionaryShape& shape = dictionary.shape;
  for (uint32_t i = 0; i < n_codes; ++i) {
    if (code_at(codes, shape.code_bits, i) >= shape.n_entries) return TINYQMOE_BAD_CODE;
  }
  uint32_t pos = 0;
  int64_t total = 0;
  for (uint32_t i = 0; i < n_codes; ++i) {
    if (pos >= cols) return TINYQMOE_BAD_ROW_LENGTH;
    const uint32_t code = code_at(codes, shape.code_bits, i);
    const uint8_t* phrase = dictionary.phrases + uint64_t{code} * shape.cap;
    const uint32_t length = dictionary.lengths[code];
    for (uint32_t k = 0; k < length; ++k) total += phrase[k] * x.whole[pos + k];
    pos += length;
  }
  *sum = total;
  return pos >= cols ? TINYQMOE_OK : TINYQMOE_BAD_ROW_LENGTH;
}

uint8_t unpack(const uint8_t* packed, uint32_t code_bits, uint32_t cols, uint8_t bias, uint8_t* out) {
  const uint32_t per_byte = 8 / code_bits;
  const uint32_t mask = (1u << code_bits) - 1;
  uint8_t largest = 0;
  for (uint32_t i = 0; i < cols; ++i) {
    const uint8_t offset = (packed[i / per_byte] >> (i % per_byte * code_bits)) & mask;
    largest = std::max(largest, offset);
    out[i] = static_cast<uint8_t>(offset + bias);
  }
  return largest;
}

uint8_t dot_packed(const uint8_t* packed, uint32_t code_bits, uint32_t n_blocks, const int8_t* packed_x,
                   int64_t* sum) {
  const uint32_t mask = (1u << code_bits) - 1;
  uint8_t largest = 0;
  int64_t total = 0;
  for (uint32_t block = 0; block < n_blocks; ++block, packed += kPackedBlock) {
    for (uint32_t bit = 0; bit < 8; bit += code_bits, packed_x += 2 * kPackedBlock) {
      for (uint32_t i = 0; i < kPackedBlock; ++i) {
        const uint8_t offset = (packed[i] >> bit) & mask;
        largest = std::max(largest, offset);
        total += offset * (256 * packed_x[i] + packed_x[kPackedBlock + i]);
      }
    }
  }
  *sum = total;
  return largest;
}

uint8_t largest(const uint8_t* bytes, uint64_t n) {
  uint8_t value = 0;
  for (uint64_t i = 0; i < n; ++i) value = std::max(value, bytes[i]);
  return value;
}

void dot(DotTask* task) {
  for (uint32_t r = 0; r < kDotRows; ++r) {
    const uint8_t* offsets = task->offsets[r];
    int64_t sum = 0;
    for (uint32_t i = 0; i < task->n; ++i) sum += offsets[i] * task->x.whole[i];
    task->sums[r] = sum;
  }
}

void dot_f32(const float* const w[kDotRows], const float* x, uint32_t n, float sums[kDotRows]) {
  for (uint32_t r = 0; r < kDotRows; ++r) {
    float p[8] = {};
    for (uint32_t i = 0; i < n; ++i) p[i % 8] += w[r][i] * x[i];
    sums[r] = ((p[0] + p[4]) + (p[2] + p[6])) + ((p[1] + p[5]) + (p[3] + p[7]));
  }
}

uint32_t abs_max_bits(const float* x, uint32_t n) {
  uint32_t largest_bits = 0;
  for (uint32_t i = 0; i < n; ++i) largest_bits = std::max(largest_bits, load<uint32_t>(x + i) & 0x7FFFFFFFu);
  return largest_bits;
}

void quantize(const float* x, uint32_t n, float factor, int16_t* whole, int8_t* high, int8_t* low) {
  // Adding 1.5 * 2^23 leaves no bits below one, so the addition itself rounds half to even.
  constexpr float kRound = 12582912.0f;
  for (uint32_t i = 0; i < n; ++i) {
    const float shifted = x[i] * factor + kRound;
    const int32_t q = static_cast<int32_t>(shifted - kRound);
    whole[i] = static_cast<int16_t>(q);
    high[i] = static_cast<int8_t>((q + 128) >> 8);
    low[i] = static_cast<int8_t>(q - 256 * high[i]);
  }
}

constexpr Kernels kScalar = {expand_codes_checked, dot_codes, unpack,       dot_packed, largest,
                             dot,                  dot_f32,   abs_max_bits, quantize};

}  // namespace

const Kernels* scalar_kernels() { return &kScalar; }

}  // namespace tinyqmoe
