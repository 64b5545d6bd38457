// Plain C++: the yardstick of the other kernels.
#include <algorithm>
#include <cstring>

#include "phrases.h"

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

namespace tinyqmoe {

namespace {

tinyqmoe_status expand_phrases(const Dictionary& dictionary, const CodedRow* rows, uint32_t n, uint32_t cols,
                               uint8_t* out, uint64_t stride) {
  for (uint32_t k = 0; k < n; ++k) {
    PhraseLane lane = lane_of(rows[k], cols, out + k * stride);
    const tinyqmoe_status status = finish_row(dictionary, &lane);
    if (status != TINYQMOE_OK) return status;
  }
  return TINYQMOE_OK;
}

uint8_t expand_base3(const uint8_t* packed, uint32_t cols, uint8_t bias, uint8_t* out) {
  uint8_t largest = 0;
  for (uint32_t begin = 0; begin < cols; begin += kBase3Columns) {
    const uint32_t n = std::min(kBase3Block, (cols - begin + kBase3Digits - 1) / kBase3Digits);
    for (uint32_t i = 0; i < n; ++i) {
      uint8_t rest = *packed++;
      for (uint32_t at = begin + i, digit = 0; digit < kBase3Digits; ++digit, at += n) {
        if (at < cols) out[at] = static_cast<uint8_t>((rest * 3 >> 8) + bias);
        rest = static_cast<uint8_t>(rest * 3);
      }
      largest = std::max(largest, rest);
    }
  }
  return largest;
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

template <uint32_t kBits>
int64_t dot_packed_bits(const uint8_t* packed, uint32_t n_blocks, const int8_t* packed_x) {
  constexpr uint32_t mask = (1u << kBits) - 1;
  int64_t sum = 0;
  for (uint32_t block = 0; block < n_blocks; ++block, packed += kPackedBlock) {
    for (uint32_t bit = 0; bit < 8; bit += kBits, packed_x += 2 * kPackedBlock) {
      for (uint32_t i = 0; i < kPackedBlock; ++i) {
        const int32_t offset = (packed[i] >> bit) & mask;
        sum += offset * (256 * packed_x[i] + packed_x[kPackedBlock + i]);
      }
    }
  }
  return sum;
}

void dot_packed(const PackedTask& task) { run_packed(task, dot_packed_bits<2>, dot_packed_bits<4>); }

// Adds what these bits say to a block of offsets.
template <uint32_t kBits>
void unpack_upper(const uint8_t* upper, uint8_t block[kClippedColumns]) {
  constexpr uint32_t n = 8 * kBits, mask = (1u << kBits) - 1;
  for (uint32_t k = 0; k < kClippedColumns / n; ++k) {
    for (uint32_t i = 0; i < n; ++i) {
      block[k * n + i] = static_cast<uint8_t>(block[k * n + i] + ((upper[i] >> (k * kBits) & mask) << 4));
    }
  }
}

// Of a column of a block.
uint8_t clipped_offset(const uint8_t* block, uint32_t bits, uint32_t column) {
  const uint32_t lower = block[column % kClippedLower] >> (column / kClippedLower * 4) & 15;
  const uint32_t upper_bits = bits - 4, n = 8 * upper_bits;
  if (n == 0) return static_cast<uint8_t>(lower);
  const uint32_t upper = block[kClippedLower + column % n] >> (column / n * upper_bits) & ((1u << upper_bits) - 1);
  return static_cast<uint8_t>(lower | upper << 4);
}

void dot_clipped(const ClippedTask& task) {
  int64_t of_exceptions[kClippedRows];
  dot_exceptions_plain(task, of_exceptions);
  for (uint32_t r = 0; r < task.n_rows; ++r) {
    task.sums[r] = of_exceptions[task.first_row + r];
    for (uint32_t i = 0; i < task.cols; ++i) {
      const uint8_t* const block = task.row(r) + i / kClippedColumns * clipped_block(task.bits);
      task.sums[r] += clipped_offset(block, task.bits, i % kClippedColumns) * task.x.whole[i];
    }
  }
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

constexpr Kernels kScalar = {
    expand_phrases, expand_base3,         unpack,      pack_plain, nullptr, dot_packed,
    nullptr,        unpack_clipped_plain, dot_clipped, dot,        nullptr, nullptr,
    nullptr,        dot_f32,              abs_max_bits, quantize};

}  // namespace

// What an integer holds of offsets is moved together, in steps that compilers make vectors of.
void pack_plain(const uint8_t* offsets, uint32_t n, uint32_t bits, uint8_t* packed) {
  if (bits == 2) {
    for (uint32_t i = 0; i < n / 4; ++i) {
      const uint32_t four = load<uint32_t>(offsets + 4 * i);
      const uint32_t pairs = four | four >> 6;
      packed[i] = static_cast<uint8_t>((pairs & 15) | pairs >> 12);
    }
  } else {
    for (uint32_t i = 0; i < n / 2; ++i) {
      const uint16_t two = load<uint16_t>(offsets + 2 * i);
      packed[i] = static_cast<uint8_t>(two | two >> 4);
    }
  }
}

void unpack_clipped_plain(const uint8_t* row, uint32_t bits, uint32_t cols, uint8_t bias, uint8_t* out) {
  for (uint32_t begin = 0; begin < cols; begin += kClippedColumns, row += clipped_block(bits)) {
    uint8_t block[kClippedColumns];
    for (uint32_t i = 0; i < kClippedLower; ++i) {
      block[i] = static_cast<uint8_t>((row[i] & 15) + bias);
      block[kClippedLower + i] = static_cast<uint8_t>((row[i] >> 4) + bias);
    }
    if (bits == 5) unpack_upper<1>(row + kClippedLower, block);
    if (bits == 6) unpack_upper<2>(row + kClippedLower, block);
    std::memcpy(out + begin, block, std::min<uint32_t>(cols - begin, sizeof block));
  }
}

const Kernels* scalar_kernels() { return &kScalar; }

}  // namespace tinyqmoe
