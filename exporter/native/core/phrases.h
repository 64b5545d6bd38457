// Decoding rows of phrases. In plain C++, included by every file of kernels: the loop is bound by loads and shifts, and
// rows side by side keep a core busy while each waits for its own table look-up.
#ifndef TINYQMOE_CORE_PHRASES_H_
#define TINYQMOE_CORE_PHRASES_H_

#include <algorithm>

#include "bytes.h"
#include "kernels.h"

namespace tinyqmoe {

#define TINYQMOE_INLINE __attribute__((always_inline)) inline

// Where the decoding of a row stands. Rows that are whole in the payload may be read 16 bytes past their end.
struct PhraseLane {
  const uint8_t* bytes;
  uint64_t bit;
  uint64_t end_bit;
  uint8_t* out;
  uint8_t* end;

  TINYQMOE_INLINE uint64_t window() const { return load<uint64_t>(bytes + (bit >> 3)) >> (bit & 7); }
};

// Decodes the next codeword of a lane that is not at its end yet. BAD_LEVEL: a level outside the alphabet.
tinyqmoe_status put_codeword(const Dictionary& dictionary, PhraseLane* lane);

// Decodes what is left of a row codeword by codeword, and checks how it ends (FORMAT.md section 5).
tinyqmoe_status finish_row(const Dictionary& dictionary, PhraseLane* lane);

TINYQMOE_INLINE PhraseLane lane_of(const CodedRow& row, uint32_t cols, uint8_t* out) {
  return {row.bytes, 0, row.n_bytes * 8, out, out + cols};
}

// Rounds of kLookups look-ups that neither write past a row's end nor read past its last byte, however long or short the
// codewords are.
template <uint32_t kRoom, uint32_t kLookups>
TINYQMOE_INLINE uint64_t safe_rounds(const Dictionary& d, const PhraseLane& lane) {
  constexpr int64_t kMostBits = kLookups * std::max(window_bits(kRoom), kMaxCodeBits) + 8;  // the last may be an escape
  const int64_t levels = lane.end - lane.out - (entry_bytes(kRoom) - d.most);
  const int64_t bits = static_cast<int64_t>(lane.end_bit - lane.bit);
  const uint64_t by_levels = (static_cast<uint64_t>(std::max<int64_t>(levels, 0)) * d.most_inverse >> 32) / kLookups;
  const uint64_t by_bits = static_cast<uint64_t>(std::max<int64_t>(bits, 0)) / kMostBits;
  return std::min(by_levels, by_bits);
}

// Some rounds of kLanes rows side by side. At most four look-ups in each: their bits fit what the shift to a bit and the
// sentinel leave of 64. False: a row holds a level outside the alphabet.
template <uint32_t kRoom, uint32_t kLanes, uint32_t kLookups>
TINYQMOE_INLINE bool put_rounds(const Dictionary& d, uint64_t rounds, PhraseLane* lanes) {
  constexpr uint64_t kSentinel = uint64_t{1} << 63;  // the zeros above it count the bits that were shifted out
  const uint8_t* const windows = d.windows;
  uint8_t* out[kLanes];
  for (uint32_t k = 0; k < kLanes; ++k) out[k] = lanes[k].out;
  for (; rounds > 0; --rounds) {
    uint64_t bits[kLanes];
    uint64_t control[kLanes];
    for (uint32_t k = 0; k < kLanes; ++k) bits[k] = lanes[k].window() | kSentinel;
    for (uint32_t i = 0; i < kLookups; ++i) {
      for (uint32_t k = 0; k < kLanes; ++k) {
        const uint8_t* const entry = windows + (bits[k] & ((1u << window_bits(kRoom)) - 1)) * entry_bytes(kRoom);
        std::memcpy(out[k], entry, entry_bytes(kRoom));
        control[k] = control_of(entry, kRoom);
        out[k] += control[k] >> kControlBits;
        bits[k] >>= control[k] % 64;
      }
    }
    for (uint32_t k = 0; k < kLanes; ++k) lanes[k].bit += __builtin_clzll(bits[k]);
    for (uint32_t k = 0; k < kLanes; ++k) {
      if (control[k] != 0) continue;
      // An escape stops a lane: it looks up the same window until it is taken here.
      lanes[k].out = out[k];
      if (put_codeword(d, &lanes[k]) != TINYQMOE_OK) return false;
      out[k] = lanes[k].out;
    }
  }
  for (uint32_t k = 0; k < kLanes; ++k) lanes[k].out = out[k];
  return true;
}

// All rounds that are safe.
template <uint32_t kRoom, uint32_t kLanes, uint32_t kLookups>
TINYQMOE_INLINE bool put_all_rounds(const Dictionary& d, PhraseLane* lanes) {
  for (;;) {
    uint64_t rounds = safe_rounds<kRoom, kLookups>(d, lanes[0]);
    for (uint32_t k = 1; k < kLanes; ++k) rounds = std::min(rounds, safe_rounds<kRoom, kLookups>(d, lanes[k]));
    if (rounds == 0) return true;
    if (!put_rounds<kRoom, kLanes, kLookups>(d, rounds, lanes)) return false;
  }
}

// What is left of a row that is near its end, alone.
template <uint32_t kRoom>
TINYQMOE_INLINE bool put_rest(const Dictionary& d, PhraseLane* lane) {
  return put_all_rounds<kRoom, 1, 4>(d, lane) && put_all_rounds<kRoom, 1, 1>(d, lane) &&
         finish_row(d, lane) == TINYQMOE_OK;
}

// Rows side by side. A lane whose row is near its end finishes it and takes the next one, so that no row waits for its
// neighbours. False: something is wrong with a row.
template <uint32_t kRoom>
TINYQMOE_INLINE bool put_rows(const Dictionary& d, const CodedRow* rows, uint32_t n, uint32_t cols, uint8_t* out,
                              uint64_t stride) {
  PhraseLane lanes[kDotRows];
  uint32_t n_lanes = 0, next = 0;
  while (n_lanes > 0 || next < n) {
    for (; n_lanes < kDotRows && next < n; ++next) lanes[n_lanes++] = lane_of(rows[next], cols, out + next * stride);
    const bool all = n_lanes == kDotRows;
    if (all && !put_all_rounds<kRoom, kDotRows, 4>(d, lanes)) return false;
    for (uint32_t k = n_lanes; k-- > 0;) {
      if (all && safe_rounds<kRoom, 4>(d, lanes[k]) > 0) continue;
      if (!put_rest<kRoom>(d, &lanes[k])) return false;
      lanes[k] = lanes[--n_lanes];
    }
  }
  return true;
}

// The rows, next to each other or far apart. What is wrong with them is found again row by row, in order.
template <uint32_t kRoom>
TINYQMOE_INLINE tinyqmoe_status expand_phrases_of(const Dictionary& d, const CodedRow* rows, uint32_t n, uint32_t cols,
                                                  uint8_t* out, uint64_t stride) {
  if (put_rows<kRoom>(d, rows, n, cols, out, stride)) return TINYQMOE_OK;
  for (uint32_t r = 0; r < n; ++r) {
    PhraseLane lane = lane_of(rows[r], cols, out + r * stride);
    const tinyqmoe_status status = finish_row(d, &lane);
    if (status != TINYQMOE_OK) return status;
  }
  return TINYQMOE_OK;
}

// Of the table of kernels.h.
TINYQMOE_INLINE tinyqmoe_status expand_phrases_any(const Dictionary& d, const CodedRow* rows, uint32_t n, uint32_t cols,
                                                   uint8_t* out, uint64_t stride) {
  switch (d.room) {
    case 3: return expand_phrases_of<3>(d, rows, n, cols, out, stride);
    case 6: return expand_phrases_of<6>(d, rows, n, cols, out, stride);
    default: return expand_phrases_of<14>(d, rows, n, cols, out, stride);
  }
}

}  // namespace tinyqmoe
#endif  // TINYQMOE_CORE_PHRASES_H_
