// The road of one codeword after the other: the end of a row, escapes, and what is wrong with a row.
#include "phrases.h"

namespace tinyqmoe {

tinyqmoe_status put_codeword(const Dictionary& dictionary, PhraseLane* lane) {
  const uint64_t window = lane->window();
  const uint32_t first = dictionary.first[window & (kCodewordWindows - 1)];
  const uint32_t bits = first & 15;
  const Phrase& phrase = dictionary.phrases[first >> 4];
  const uint64_t room = static_cast<uint64_t>(lane->end - lane->out);
  const uint64_t kept = std::min<uint64_t>(room, phrase.length);
  std::memcpy(lane->out, phrase.offsets, kept);
  lane->bit += bits;
  if (dictionary.is_escape[first >> 4]) {
    const uint8_t offset = static_cast<uint8_t>(window >> bits);
    if (offset >= dictionary.shape.n_levels) return TINYQMOE_BAD_LEVEL;
    if (phrase.length <= room) lane->out[phrase.length - 1] = offset;
    lane->bit += 8;
  }
  lane->out += kept;
  return TINYQMOE_OK;
}

tinyqmoe_status finish_row(const Dictionary& dictionary, PhraseLane* lane) {
  while (lane->out < lane->end) {
    if (lane->bit >= lane->end_bit) return TINYQMOE_BAD_ROW_LENGTH;
    const tinyqmoe_status status = put_codeword(dictionary, lane);
    if (status != TINYQMOE_OK) return status;
  }
  if ((lane->bit + 7) / 8 * 8 != lane->end_bit) return TINYQMOE_BAD_ROW_LENGTH;
  const bool clean = lane->bit % 8 == 0 || lane->bytes[lane->bit / 8] >> (lane->bit % 8) == 0;
  return clean ? TINYQMOE_OK : TINYQMOE_BAD_PADDING;
}

}  // namespace tinyqmoe
