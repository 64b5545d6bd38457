#include "clipped.h"

#include <cstring>

namespace tinyqmoe {
namespace {

// Of what a coded matrix takes, in hundredths of bits a weight: up to there it most often has few enough exceptions of 4, 5
// and 6 bits.
constexpr uint64_t kMostRates[] = {365, 465, 550};

// Every byte of eight.
constexpr uint64_t kBytes = 0x0101010101010101;

// The bits of the columns of a block above the lower four, kBits of each, to 8 * kBits bytes; eight columns at a time.
template <uint32_t kBits>
void pack_upper(const uint8_t offsets[kClippedColumns], uint8_t* out) {
  constexpr uint64_t kMask = kBytes * ((1u << kBits) - 1);
  uint64_t words[kBits] = {};
  for (uint32_t i = 0; i < kClippedColumns / 8; ++i) {
    words[i % kBits] |= (load<uint64_t>(offsets + 8 * i) >> 4 & kMask) << (i / kBits * kBits);
  }
  std::memcpy(out, words, sizeof words);
}

void pack_block(const uint8_t offsets[kClippedColumns], uint32_t bits, uint8_t* out) {
  constexpr uint64_t kMask = kBytes * 15;
  for (uint32_t i = 0; i < kClippedLower; i += 8) {
    const uint64_t first = load<uint64_t>(offsets + i) & kMask;
    const uint64_t word = first | (load<uint64_t>(offsets + kClippedLower + i) & kMask) << 4;
    std::memcpy(out + i, &word, sizeof word);
  }
  if (bits == 5) pack_upper<1>(offsets, out + kClippedLower);
  if (bits == 6) pack_upper<2>(offsets, out + kClippedLower);
}

}  // namespace

bool suits_clipped(const tinyqmoe_info& coded, uint32_t bits) {
  const uint64_t weights = uint64_t{coded.rows} * coded.cols;
  const bool possible = coded.codec != kBase3 && coded.n_levels > clipped_levels(bits) &&
                        clipped_index_bytes(coded) <= UINT32_MAX;  // a header's field
  return possible && coded.total_bytes * 800 <= weights * kMostRates[bits - 4];
}

bool ClippedMaker::add(const uint8_t* offsets, uint8_t* row) {
  const uint8_t lowest = clipped_base(info_, bits_);
  const uint8_t highest = static_cast<uint8_t>(lowest + clipped_levels(bits_) - 1);
  in_block_ = kExceptions;
  for (uint32_t begin = 0; begin < info_.cols; begin += kClippedColumns, row += clipped_block(bits_)) {
    uint8_t block[kClippedColumns], nearest[kClippedColumns];
    std::memcpy(block, offsets + begin, sizeof block);
    if (info_.cols - begin < sizeof block) {
      std::memset(block + info_.cols - begin, lowest, begin + sizeof block - info_.cols);
    }
    for (uint32_t i = 0; i < kClippedColumns; ++i) {  // not by std::clamp, of which gcc makes no vectors
      const uint8_t raised = block[i] < lowest ? lowest : block[i];
      nearest[i] = raised > highest ? highest : raised;
    }
    if (std::memcmp(block, nearest, sizeof block) != 0 && !find(block, nearest, begin)) return false;
    for (uint8_t& offset : nearest) offset = static_cast<uint8_t>(offset - lowest);
    pack_block(nearest, bits_, row);
  }
  ++row_;
  return true;
}

// The exceptions of the columns of a block, which begins at this one.
bool ClippedMaker::find(const uint8_t* offsets, const uint8_t* nearest, uint32_t begin) {
  for (uint32_t i = 0; i < kClippedColumns; i += 8) {
    uint64_t differ = load<uint64_t>(offsets + i) ^ load<uint64_t>(nearest + i);
    while (differ != 0) {
      const uint32_t byte = static_cast<uint32_t>(__builtin_ctzll(differ)) / 8;
      differ &= ~(uint64_t{0xFF} << 8 * byte);
      if (!put(begin + i + byte, offsets[i + byte] - nearest[i + byte])) return false;
    }
  }
  return true;
}

bool ClippedMaker::put(uint32_t column, int32_t difference) {
  if (in_block_ == kExceptions) {
    if (n_ == room_) return false;
    std::memset(out_ + n_ * kExceptionBytes, 0, kExceptionBytes - 1);
    ++n_;
    out_[n_ * kExceptionBytes - 1] = static_cast<uint8_t>(row_ % kClippedRows);
    in_block_ = 0;
  }
  uint8_t* const block = out_ + (n_ - 1) * kExceptionBytes;
  const uint16_t stored = static_cast<uint16_t>(column);
  std::memcpy(block + sizeof stored * in_block_, &stored, sizeof stored);
  block[kDifferences + in_block_++] = static_cast<uint8_t>(difference);
  return true;
}

tinyqmoe_status add_exceptions(const tinyqmoe_tensor& tensor, uint32_t row, uint32_t n, const RowTarget& to) {
  const tinyqmoe_info& info = tensor.info;
  bool in_alphabet = true, in_row = true;
  for (Exceptions at = exceptions_of(tensor, row); at.any(); at.next()) {
    const uint32_t k = at.row() - row % kClippedRows;
    if (k >= n) continue;
    uint8_t* const out = to.out + k * to.stride;
    for (uint32_t i = 0; i < kExceptions; ++i) {
      const uint32_t column = at.column(i);
      in_row &= column < info.cols;
      if (column >= info.cols) continue;
      const int32_t offset = static_cast<uint8_t>(out[column] - to.bias) + at.difference(i);
      in_alphabet &= offset >= 0 && offset < static_cast<int32_t>(info.n_levels);
      out[column] = static_cast<uint8_t>(offset + to.bias);
    }
  }
  if (!in_alphabet) return TINYQMOE_BAD_LEVEL;
  return in_row ? TINYQMOE_OK : TINYQMOE_BAD_INDEX;
}

}  // namespace tinyqmoe
