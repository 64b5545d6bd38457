#include "nibbles.h"

#include <cstring>
#include <new>

namespace tinyqmoe {
namespace {

// Of what a coded matrix takes, in hundredths of bits a weight: up to there it most often has few enough exceptions.
constexpr uint64_t kMostRate = 365;
constexpr uint64_t kMostWeights = uint64_t{1} << 34;  // whose index is counted in 32 bits

constexpr uint32_t kFarthest = 15;

}  // namespace

bool suits_nibbles(const tinyqmoe_info& coded) {
  const uint64_t weights = uint64_t{coded.rows} * coded.cols;
  const bool possible = coded.codec != kBase3 && coded.n_levels > kNibbleLevels && weights <= kMostWeights;
  return possible && coded.total_bytes * 800 <= weights * kMostRate;
}

NibbleMaker::NibbleMaker(const tinyqmoe_info& info, uint16_t* out, uint64_t room)
    : info_(info),
      out_(out),
      room_(room),
      found_(new (std::nothrow) Found[2 * uint64_t{kNibbleRows} * info.cols]),
      ends_(new (std::nothrow) uint32_t[uint64_t{info.cols} + 1]) {}

void NibbleMaker::add(const uint8_t* offsets, uint8_t* nibbles) {
  const uint8_t lowest = nibble_base(info_), highest = static_cast<uint8_t>(lowest + kNibbleLevels - 1);
  for (uint32_t begin = 0; begin < info_.cols; begin += kNibbleColumns, nibbles += kNibbleBlock) {
    uint8_t block[kNibbleColumns], nearest[kNibbleColumns];
    std::memcpy(block, offsets + begin, sizeof block);
    if (info_.cols - begin < sizeof block) {
      std::memset(block + info_.cols - begin, lowest, begin + sizeof block - info_.cols);
    }
    for (uint32_t i = 0; i < kNibbleColumns; ++i) {  // not by std::clamp, of which gcc makes no vectors
      const uint8_t raised = block[i] < lowest ? lowest : block[i];
      nearest[i] = raised > highest ? highest : raised;
    }
    for (uint32_t i = 0; i < kNibbleColumns; i += 8) {
      uint64_t differ = load<uint64_t>(block + i) ^ load<uint64_t>(nearest + i);
      while (differ != 0) {
        const uint32_t byte = static_cast<uint32_t>(__builtin_ctzll(differ)) / 8;
        differ &= ~(uint64_t{0xFF} << 8 * byte);
        const uint32_t at = i + byte;
        found_[n_found_++] = {static_cast<uint16_t>(begin + at), static_cast<uint8_t>(row_),
                              static_cast<int8_t>(block[at] - nearest[at])};
      }
    }
    for (uint32_t i = 0; i < kNibbleBlock; ++i) {
      nibbles[i] = static_cast<uint8_t>((nearest[i] - lowest) | (nearest[kNibbleBlock + i] - lowest) << 4);
    }
  }
  ++row_;
}

bool NibbleMaker::put(uint32_t distance, uint32_t row, int32_t difference) {
  if (n_ == room_) return false;
  out_[n_++] = static_cast<uint16_t>(distance | row << 4 | static_cast<uint32_t>(difference & 0xFF) << 8);
  return true;
}

void NibbleMaker::sort_by_column(Found* sorted) {
  std::fill_n(ends_.get(), uint64_t{info_.cols} + 1, 0);
  for (uint32_t i = 0; i < n_found_; ++i) ++ends_[found_[i].column + 1];
  for (uint32_t i = 0; i < info_.cols; ++i) ends_[i + 1] += ends_[i];
  for (uint32_t i = 0; i < n_found_; ++i) sorted[ends_[found_[i].column]++] = found_[i];
}

bool NibbleMaker::end_tile() {
  Found* const sorted = found_.get() + uint64_t{kNibbleRows} * info_.cols;
  sort_by_column(sorted);
  uint32_t last = 0;
  for (uint32_t i = 0; i < n_found_; ++i) {
    for (; sorted[i].column - last > kFarthest; last += kFarthest) {
      if (!put(kFarthest, 0, 0)) return false;
    }
    if (!put(sorted[i].column - last, sorted[i].row, sorted[i].difference)) return false;
    last = sorted[i].column;
  }
  row_ = n_found_ = 0;
  return true;
}

void unpack_nibbles(const uint8_t* nibbles, uint32_t cols, uint8_t bias, uint8_t* out) {
  for (uint32_t begin = 0; begin < cols; begin += kNibbleColumns, nibbles += kNibbleBlock) {
    uint8_t block[kNibbleColumns];
    for (uint32_t i = 0; i < kNibbleBlock; ++i) {
      block[i] = static_cast<uint8_t>((nibbles[i] & 15) + bias);
      block[kNibbleBlock + i] = static_cast<uint8_t>((nibbles[i] >> 4) + bias);
    }
    std::memcpy(out + begin, block, std::min<uint32_t>(cols - begin, sizeof block));
  }
}

tinyqmoe_status add_exceptions(const tinyqmoe_tensor& tensor, uint32_t row, uint32_t n, const RowTarget& to) {
  const tinyqmoe_info& info = tensor.info;
  bool in_alphabet = true;
  Exceptions exceptions(tensor, row);
  exceptions.visit_to(info.cols, [&](uint32_t at, uint32_t column, int32_t difference) {
    const uint32_t k = at - row % kNibbleRows;
    if (k >= n) return;
    uint8_t* const out = to.out + k * to.stride + column;
    const int32_t offset = static_cast<uint8_t>(*out - to.bias) + difference;
    in_alphabet &= offset >= 0 && offset < static_cast<int32_t>(info.n_levels);
    *out = static_cast<uint8_t>(offset + to.bias);
  });
  if (!in_alphabet) return TINYQMOE_BAD_LEVEL;
  return exceptions.at_end() ? TINYQMOE_OK : TINYQMOE_BAD_INDEX;
}

}  // namespace tinyqmoe
