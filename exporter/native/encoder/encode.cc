// The encoder: counting levels, and packing rows.
#include <algorithm>

#include "encode.h"

namespace tinyqmoe {

bool inside_alphabet(const int8_t* levels, uint64_t n, int32_t level_min, uint32_t n_levels) {
  uint8_t largest = 0;
  for (uint64_t i = 0; i < n; ++i) {
    largest = std::max(largest, static_cast<uint8_t>(static_cast<uint8_t>(levels[i]) - static_cast<uint8_t>(level_min)));
  }
  return largest < n_levels;
}

tinyqmoe_status check_layout(const tinyqmoe_info& info, const DictionaryShape& shape) {
  tinyqmoe_status status = check_codec(info.codec, info.code_bits, info.cap);
  if (status == TINYQMOE_OK) status = check_alphabet(info, shape.core_first, shape.n_core);
  if (status == TINYQMOE_OK) status = check_shape(info.rows, info.cols);
  return status == TINYQMOE_OK ? check_entries(info.codec, shape) : status;
}

tinyqmoe_info info_of(const tinyqmoe_encode_args& args, Codec codec, uint32_t code_bits, uint32_t cap) {
  tinyqmoe_info info{};
  info.codec = codec;
  info.code_bits = static_cast<uint8_t>(code_bits);
  info.cap = static_cast<uint8_t>(cap);
  info.level_min = args.level_min;
  info.n_levels = args.n_levels;
  info.rows = args.rows;
  info.cols = args.cols;
  return info;
}

namespace {

// One raw row.
void pack_raw(const int8_t* levels, const tinyqmoe_info& info, uint8_t* out) {
  const uint32_t per_byte = 8 / info.code_bits;
  const uint8_t bias = static_cast<uint8_t>(info.level_min);
  if (per_byte == 1) {  // a loop that compilers make vectors of
    for (uint32_t c = 0; c < info.cols; ++c) out[c] = static_cast<uint8_t>(static_cast<uint8_t>(levels[c]) - bias);
    return;
  }
  for (uint32_t c = 0; c < info.cols; c += per_byte) {
    uint32_t byte = 0;
    for (uint32_t k = 0; k < per_byte && c + k < info.cols; ++k) {
      byte |= static_cast<uint32_t>(static_cast<uint8_t>(static_cast<uint8_t>(levels[c + k]) - bias))
              << (k * info.code_bits);
    }
    *out++ = static_cast<uint8_t>(byte);
  }
}

// One base-3 row. A byte is the smallest that holds its five digits as a fraction: ceil(256 * code / 243).
void pack_base3(const int8_t* levels, const tinyqmoe_info& info, uint8_t* out) {
  for (uint32_t begin = 0; begin < info.cols; begin += kBase3Block * kBase3Digits) {
    const uint32_t n = std::min(kBase3Block, (info.cols - begin + kBase3Digits - 1) / kBase3Digits);
    for (uint32_t i = 0; i < n; ++i) {
      uint32_t code = 0;
      for (uint32_t at = begin + i, digit = 0; digit < kBase3Digits; ++digit, at += n) {
        code = code * 3 + (at < info.cols ? static_cast<uint32_t>(levels[at] - info.level_min) : 0);
      }
      *out++ = static_cast<uint8_t>((code * 256 + kBase3Codes - 1) / kBase3Codes);
    }
  }
}

tinyqmoe_status pack_rows(const tinyqmoe_encode_args* args, Codec codec, uint32_t cap) {
  if (args == nullptr || args->levels == nullptr || args->payload == nullptr) return TINYQMOE_BAD_ARGUMENT;
  const tinyqmoe_info info = info_of(*args, codec, codec == kRaw ? args->code_bits : 8, cap);
  const tinyqmoe_status status = check_layout(info, {});
  if (status != TINYQMOE_OK) return status;
  const uint64_t row_bytes = packed_row_bytes(info);
  if (args->payload_capacity < row_bytes * args->rows) return TINYQMOE_BUFFER_TOO_SMALL;
  const auto pack = codec == kRaw ? pack_raw : pack_base3;
  for (uint64_t row = 0; row < args->rows; ++row) {
    const int8_t* const levels = args->levels + row * args->cols;
    if (!inside_alphabet(levels, args->cols, args->level_min, args->n_levels)) return TINYQMOE_BAD_LEVEL;
    pack(levels, info, args->payload + row * row_bytes);
  }
  return TINYQMOE_OK;
}

}  // namespace
}  // namespace tinyqmoe

extern "C" {

tinyqmoe_status tinyqmoe_count_levels(const int8_t* levels, uint64_t n, uint64_t* counts) {
  if ((levels == nullptr && n > 0) || counts == nullptr) return TINYQMOE_BAD_ARGUMENT;
  // Equal neighbours would wait for each other in one table.
  uint64_t partial[4][256] = {};
  for (uint64_t i = 0; i < n; ++i) ++partial[i % 4][levels[i] + 128];
  for (uint32_t v = 0; v < 256; ++v) counts[v] = partial[0][v] + partial[1][v] + partial[2][v] + partial[3][v];
  return TINYQMOE_OK;
}

tinyqmoe_status tinyqmoe_encode_raw(const tinyqmoe_encode_args* args) {
  return tinyqmoe::pack_rows(args, tinyqmoe::kRaw, 0);
}

tinyqmoe_status tinyqmoe_encode_base3(const tinyqmoe_encode_args* args) {
  return tinyqmoe::pack_rows(args, tinyqmoe::kBase3, tinyqmoe::kBase3Digits);
}

}  // extern "C"
