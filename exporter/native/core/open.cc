// Opening a blob: the checks of FORMAT.md section 6, in its order.
#include <new>

#include "bytes.h"
#include "residency.h"
#include "rows.h"
#include "tensor.h"

namespace tinyqmoe {

tinyqmoe_status check_codec(uint32_t codec, uint32_t code_bits, uint32_t cap) {
  const bool raw = codec == kRaw && cap == 0 && (code_bits == 2 || code_bits == 4 || code_bits == 8);
  const bool lzw = codec == kLzw && (cap == 16 || cap == 32) && (code_bits == 8 || code_bits == 12 || code_bits == 16);
  return raw || lzw ? TINYQMOE_OK : TINYQMOE_BAD_CODEC;
}

tinyqmoe_status check_alphabet(uint32_t code_bits, int32_t level_min, uint32_t n_levels) {
  const bool size = n_levels >= 2 && n_levels <= 256 && n_levels <= (1u << code_bits);
  const bool range = level_min >= -128 && level_min + static_cast<int32_t>(n_levels) - 1 <= 127;
  return size && range ? TINYQMOE_OK : TINYQMOE_BAD_ALPHABET;
}

tinyqmoe_status check_shape(uint32_t rows, uint32_t cols) {
  const bool fine = rows >= 1 && rows <= 0x7FFFFFFFu && cols >= 1 && cols <= 65535;
  return fine ? TINYQMOE_OK : TINYQMOE_BAD_SHAPE;
}

tinyqmoe_status check_entries(uint32_t codec, uint32_t code_bits, uint32_t n_levels, uint32_t n_entries) {
  if (codec == kRaw) return n_entries == 0 ? TINYQMOE_OK : TINYQMOE_BAD_ENTRIES;
  const bool fine =
      n_entries >= n_levels && n_entries <= (1u << code_bits) && (n_entries - 1) % (n_levels - 1) == 0;
  return fine ? TINYQMOE_OK : TINYQMOE_BAD_ENTRIES;
}

namespace {

// Byte offsets of the parts (FORMAT.md section 1). The largest is below 2^48: no sum overflows.
struct Layout {
  uint64_t dictionary_end;
  uint64_t index;
  uint64_t index_end;
  uint64_t payload;
  uint64_t payload_end;
  uint64_t total;
};

DictionaryShape dictionary_shape(const tinyqmoe_info& info) {
  return {info.code_bits, info.cap, info.n_levels, info.n_entries};
}

uint64_t tiles(uint32_t rows) { return (uint64_t{rows} + kTileRows - 1) / kTileRows; }

uint64_t raw_row_bytes(const tinyqmoe_info& info) { return (uint64_t{info.cols} * info.code_bits + 7) / 8; }

Layout layout_of(const tinyqmoe_info& info) {
  Layout at{kHeaderBytes, kHeaderBytes, kHeaderBytes, 0, 0, 0};
  if (info.codec == kLzw) {
    at.dictionary_end = kHeaderBytes + dictionary_shape(info).section_bytes();
    at.index = round_up(at.dictionary_end, 4);
    at.index_end = at.index + 4 * tiles(info.rows) + 2 * uint64_t{info.rows};
  }
  at.payload = round_up(at.index_end, 64);
  at.payload_end = at.payload + info.payload_bytes;
  at.total = round_up(at.payload_end + 16, 64);
  return at;
}

tinyqmoe_info read_info(const uint8_t* b) {
  tinyqmoe_info info{};
  info.codec = b[8];
  info.code_bits = b[9];
  info.cap = b[10];
  info.level_min = static_cast<int8_t>(b[11]);
  info.n_levels = load<uint16_t>(b + 12);
  info.rows = load<uint32_t>(b + 16);
  info.cols = load<uint32_t>(b + 20);
  info.n_entries = load<uint32_t>(b + 24);
  info.payload_bytes = load<uint64_t>(b + 40);
  info.header_crc32 = load<uint32_t>(b + 60);
  return info;
}

tinyqmoe_status check_header(const uint8_t* b) {
  if (std::memcmp(b, "TQLZ", 4) != 0) return TINYQMOE_BAD_MAGIC;
  if (load<uint16_t>(b + 4) != 1 || load<uint16_t>(b + 6) != kHeaderBytes) return TINYQMOE_BAD_VERSION;
  if (tinyqmoe_crc32(0, b, 60) != load<uint32_t>(b + 60)) return TINYQMOE_BAD_HEADER_CRC;
  const bool reserved = load<uint16_t>(b + 14) != 0 || load<uint32_t>(b + 28) != 0 || load<uint32_t>(b + 56) != 0;
  return reserved ? TINYQMOE_BAD_RESERVED : TINYQMOE_OK;
}

tinyqmoe_status check_fields(const tinyqmoe_info& info) {
  tinyqmoe_status status = check_codec(info.codec, info.code_bits, info.cap);
  if (status == TINYQMOE_OK) status = check_alphabet(info.code_bits, info.level_min, info.n_levels);
  if (status == TINYQMOE_OK) status = check_shape(info.rows, info.cols);
  if (status == TINYQMOE_OK) status = check_entries(info.codec, info.code_bits, info.n_levels, info.n_entries);
  return status;
}

tinyqmoe_status check_sections(const tinyqmoe_info& info, const Layout& at, uint64_t payload_offset) {
  const bool size = info.codec == kRaw ? info.payload_bytes == info.rows * raw_row_bytes(info)
                                       : info.payload_bytes <= 0xFFFFFFFFu;
  return size && payload_offset == at.payload ? TINYQMOE_OK : TINYQMOE_BAD_SECTION;
}

tinyqmoe_status check_index(const tinyqmoe_tensor& tensor) {
  const tinyqmoe_info& info = tensor.info;
  uint64_t offset = 0;
  for (uint32_t row = 0; row < info.rows; ++row) {
    if (row % kTileRows == 0 && load<uint32_t>(tensor.tile_offsets + row / kTileRows * 4) != offset) {
      return TINYQMOE_BAD_INDEX;
    }
    const uint32_t n_codes = load<uint16_t>(tensor.row_codes + uint64_t{row} * 2);
    if (n_codes == 0 || n_codes > info.cols) return TINYQMOE_BAD_INDEX;
    offset += (uint64_t{n_codes} * info.code_bits + 7) / 8;
  }
  return offset == info.payload_bytes ? TINYQMOE_OK : TINYQMOE_BAD_INDEX;
}

tinyqmoe_status check_zero(const uint8_t* bytes, uint64_t begin, uint64_t end) {
  for (uint64_t i = begin; i < end; ++i) {
    if (bytes[i] != 0) return TINYQMOE_BAD_PADDING;
  }
  return TINYQMOE_OK;
}

tinyqmoe_status check_padding(const uint8_t* bytes, const Layout& at) {
  tinyqmoe_status status = check_zero(bytes, at.dictionary_end, at.index);
  if (status == TINYQMOE_OK) status = check_zero(bytes, at.index_end, at.payload);
  if (status == TINYQMOE_OK) status = check_zero(bytes, at.payload_end, at.total);
  return status;
}

// Everything after the header; fills the tensor. The dictionary, once acquired, is the caller's to release.
tinyqmoe_status check_parts(const uint8_t* header, const uint8_t* bytes, uint64_t n_bytes, uint32_t flags,
                            tinyqmoe_tensor* tensor) {
  tinyqmoe_info& info = tensor->info;
  const Layout at = layout_of(info);
  tinyqmoe_status status = check_sections(info, at, load<uint64_t>(header + 32));
  if (status != TINYQMOE_OK) return status;
  if (n_bytes < at.total) return TINYQMOE_TRUNCATED;
  if (tinyqmoe_crc32(0, bytes + kHeaderBytes, at.payload - kHeaderBytes) != load<uint32_t>(header + 48)) {
    return TINYQMOE_BAD_TABLES_CRC;
  }
  info.total_bytes = at.total;
  tensor->payload = bytes + at.payload;
  tensor->row_bytes = raw_row_bytes(info);
  if (info.codec == kLzw) {
    tensor->tile_offsets = bytes + at.index;
    tensor->row_codes = tensor->tile_offsets + 4 * tiles(info.rows);
    status = acquire_dictionary(dictionary_shape(info), bytes + kHeaderBytes, &tensor->dictionary);
    if (status == TINYQMOE_OK) status = check_index(*tensor);
  }
  if (status == TINYQMOE_OK) status = check_padding(bytes, at);
  if (status != TINYQMOE_OK || (flags & TINYQMOE_VERIFY_PAYLOAD) == 0) return status;
  if (tinyqmoe_crc32(0, tensor->payload, info.payload_bytes) != load<uint32_t>(header + 52)) {
    return TINYQMOE_BAD_PAYLOAD_CRC;
  }
  return check_rows(*tensor);
}

}  // namespace
}  // namespace tinyqmoe

extern "C" {

tinyqmoe_status tinyqmoe_open(const void* bytes, uint64_t n_bytes, uint32_t flags, tinyqmoe_tensor** out) {
  if (out == nullptr) return TINYQMOE_BAD_ARGUMENT;
  *out = nullptr;
  if ((flags & ~TINYQMOE_VERIFY_PAYLOAD) != 0) return TINYQMOE_BAD_ARGUMENT;
  if (n_bytes < tinyqmoe::kHeaderBytes) return TINYQMOE_TRUNCATED;
  if (bytes == nullptr) return TINYQMOE_BAD_ARGUMENT;
  // One copy of the header: what was checked is what is used.
  uint8_t header[tinyqmoe::kHeaderBytes];
  std::memcpy(header, bytes, sizeof header);
  tinyqmoe_status status = tinyqmoe::check_header(header);
  if (status != TINYQMOE_OK) return status;
  const tinyqmoe_info info = tinyqmoe::read_info(header);
  status = tinyqmoe::check_fields(info);
  if (status != TINYQMOE_OK) return status;
  tinyqmoe_tensor* tensor = new (std::nothrow) tinyqmoe_tensor{};
  if (tensor == nullptr) return TINYQMOE_OUT_OF_MEMORY;
  tensor->info = info;
  tensor->bytes = static_cast<const uint8_t*>(bytes);
  std::memcpy(tensor->header, header, sizeof header);
  status = tinyqmoe::check_parts(header, static_cast<const uint8_t*>(bytes), n_bytes, flags, tensor);
  if (status != TINYQMOE_OK) {
    tinyqmoe_close(tensor);
    return status;
  }
  *out = tensor;
  return TINYQMOE_OK;
}

void tinyqmoe_close(tinyqmoe_tensor* tensor) {
  if (tensor == nullptr) return;
  tinyqmoe::forget(*tensor);
  tinyqmoe::release_dictionary(tensor->dictionary);
  delete tensor;
}

void tinyqmoe_get_info(const tinyqmoe_tensor* tensor, tinyqmoe_info* info) { *info = tensor->info; }

}  // extern "C"
