// Opening a blob: the checks of FORMAT.md section 6, in its order.
#include <algorithm>
#include <new>

#include "bytes.h"
#include "clipped.h"
#include "residency.h"
#include "rows.h"
#include "tensor.h"

namespace tinyqmoe {

tinyqmoe_status check_codec(uint32_t codec, uint32_t code_bits, uint32_t cap) {
  const bool raw = codec == kRaw && cap == 0 && (code_bits == 2 || code_bits == 4 || code_bits == 8);
  const bool lzw = codec == kLzw && (cap == 3 || cap == 6 || cap == kMaxCap) && code_bits == kMaxCodeBits;
  const bool base3 = codec == kBase3 && cap == kBase3Digits && code_bits == 8;
  return raw || lzw || base3 ? TINYQMOE_OK : TINYQMOE_BAD_CODEC;
}

tinyqmoe_status check_alphabet(const tinyqmoe_info& info, uint32_t core_first, uint32_t n_core) {
  const uint32_t n_levels = info.n_levels;
  const bool range = info.level_min + static_cast<int64_t>(n_levels) - 1 <= 127;
  bool fits = n_levels >= 2 && n_levels <= 256 && range;
  if (info.codec == kLzw) {
    fits &= n_core >= 1 && uint64_t{core_first} + n_core <= n_levels;
  } else if (info.codec == kClipped) {
    fits &= n_levels > clipped_levels(info.code_bits) && core_first == 0 && n_core == 0;
  } else {
    const uint32_t limit = info.codec == kBase3 ? 3 : 1u << info.code_bits;
    fits &= n_levels <= limit && (info.codec == kRaw || n_levels == 3) && core_first == 0 && n_core == 0;
  }
  return fits ? TINYQMOE_OK : TINYQMOE_BAD_ALPHABET;
}

tinyqmoe_status check_shape(uint32_t rows, uint32_t cols) {
  const bool fine = rows >= 1 && rows <= 0x7FFFFFFFu && cols >= 1 && cols <= 65535;
  return fine ? TINYQMOE_OK : TINYQMOE_BAD_SHAPE;
}

tinyqmoe_status check_entries(uint32_t codec, const DictionaryShape& shape) {
  if (codec != kLzw) return shape.n_entries == 0 ? TINYQMOE_OK : TINYQMOE_BAD_ENTRIES;
  const uint32_t n_children = shape.n_children();
  const bool fine = shape.n_entries >= n_children && shape.n_entries <= kMaxEntries &&
                    (shape.n_entries - 1) % (n_children - 1) == 0;
  return fine ? TINYQMOE_OK : TINYQMOE_BAD_ENTRIES;
}

uint64_t packed_row_bytes(const tinyqmoe_info& info) {
  if (info.codec == kBase3) return (uint64_t{info.cols} + kBase3Digits - 1) / kBase3Digits;
  if (info.codec == kClipped) return clipped_row_bytes(info.cols, info.code_bits);
  return info.codec == kLzw ? 0 : (uint64_t{info.cols} * info.code_bits + 7) / 8;
}

namespace {

// The header's fields: those that callers see, and the rest.
struct Header {
  tinyqmoe_info info;
  DictionaryShape shape;
  uint64_t payload_offset;
  uint32_t index_bytes;

  explicit Header(const uint8_t* b)
      : info{}, shape{}, payload_offset(load<uint64_t>(b + 32)), index_bytes(load<uint32_t>(b + 56)) {
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
    shape = {info.cap, info.n_levels, load<uint16_t>(b + 28), load<uint16_t>(b + 14), info.n_entries};
  }
};

// Byte offsets of the parts (FORMAT.md section 1). The largest is below 2^48: no sum overflows.
struct Layout {
  uint64_t dictionary_end;
  uint64_t index;
  uint64_t index_end;
  uint64_t payload;
  uint64_t payload_end;
  uint64_t total;

  explicit Layout(const Header& header) {
    const bool lzw = header.info.codec == kLzw;
    dictionary_end = kHeaderBytes + (lzw ? header.shape.section_bytes() : 0);
    index = round_up(dictionary_end, 4);
    index_end = index + header.index_bytes;
    payload = round_up(index_end, 64);
    payload_end = payload + header.info.payload_bytes;
    total = round_up(payload_end + 16, 64);
  }
};

tinyqmoe_status check_header(const uint8_t* b) {
  if (std::memcmp(b, "TQLZ", 4) != 0) return TINYQMOE_BAD_MAGIC;
  if (load<uint16_t>(b + 4) != 2 || load<uint16_t>(b + 6) != kHeaderBytes) return TINYQMOE_BAD_VERSION;
  if (tinyqmoe_crc32(0, b, 60) != load<uint32_t>(b + 60)) return TINYQMOE_BAD_HEADER_CRC;
  return load<uint16_t>(b + 30) != 0 ? TINYQMOE_BAD_RESERVED : TINYQMOE_OK;
}

bool is_clipped(const tinyqmoe_info& info) {
  return info.codec == kClipped && info.code_bits >= 4 && info.code_bits <= 6 && info.cap == 0;
}

tinyqmoe_status check_fields(const Header& header, bool is_copy) {
  const tinyqmoe_info& info = header.info;
  tinyqmoe_status status = TINYQMOE_OK;
  if (!is_copy || !is_clipped(info)) status = check_codec(info.codec, info.code_bits, info.cap);
  if (status == TINYQMOE_OK) status = check_alphabet(info, header.shape.core_first, header.shape.n_core);
  if (status == TINYQMOE_OK) status = check_shape(info.rows, info.cols);
  if (status == TINYQMOE_OK) status = check_entries(info.codec, header.shape);
  return status;
}

tinyqmoe_status check_sections(const Header& header, const Layout& at) {
  const tinyqmoe_info& info = header.info;
  const uint64_t index_bytes = info.codec == kClipped ? clipped_index_bytes(info) : 0;
  bool sizes = header.index_bytes == index_bytes && info.payload_bytes == info.rows * packed_row_bytes(info);
  if (info.codec == kLzw) {
    // A row has at least a byte, so the rows are no more than the bytes that are there.
    const uint64_t tiles = n_tiles(info.rows);
    sizes = header.index_bytes % 4 == 0 && header.index_bytes >= 4 * tiles && info.payload_bytes >= info.rows &&
            info.payload_bytes <= 0xFFFFFFFFu;
  }
  return sizes && header.payload_offset == at.payload ? TINYQMOE_OK : TINYQMOE_BAD_SECTION;
}

// One tile of the index, from `offset` on, which it moves past the tile. `payload` moves past its rows.
tinyqmoe_status read_tile(const tinyqmoe_tensor& tensor, uint32_t index_bytes, uint32_t n_rows, Tile* tile,
                          uint64_t* offset, uint64_t* payload) {
  if (*offset + 4 > index_bytes) return TINYQMOE_BAD_INDEX;
  const uint32_t head = load<uint32_t>(tensor.index + *offset);
  *tile = {static_cast<uint32_t>(*payload), static_cast<uint32_t>(*offset + 4), head & 0xFFFFFF, head >> 24};
  *offset += 4 + 4 * uint64_t{tile->width};
  if (tile->shortest == 0 || tile->width > kMaxWidth || *offset > index_bytes) return TINYQMOE_BAD_INDEX;
  for (uint32_t row = 0; row < kTileRows; ++row) {
    const uint32_t delta = delta_at(tensor.index + tile->deltas, tile->width, row);
    if (row < n_rows) {
      *payload += uint64_t{tile->shortest} + delta;
    } else if (delta != 0) {
      return TINYQMOE_BAD_INDEX;
    }
  }
  return *payload <= tensor.info.payload_bytes ? TINYQMOE_OK : TINYQMOE_BAD_INDEX;
}

tinyqmoe_status read_index(uint32_t index_bytes, tinyqmoe_tensor* tensor) {
  const uint32_t rows = tensor->info.rows;
  const uint64_t tiles = n_tiles(rows);
  tensor->tiles.reset(new (std::nothrow) Tile[tiles]);
  if (tensor->tiles == nullptr) return TINYQMOE_OUT_OF_MEMORY;
  uint64_t offset = 0;
  uint64_t payload = 0;
  for (uint32_t tile = 0; tile < tiles; ++tile) {
    const uint32_t n_rows = std::min(kTileRows, rows - tile * kTileRows);
    const tinyqmoe_status status =
        read_tile(*tensor, index_bytes, n_rows, &tensor->tiles[tile], &offset, &payload);
    if (status != TINYQMOE_OK) return status;
  }
  return offset == index_bytes && payload == tensor->info.payload_bytes ? TINYQMOE_OK : TINYQMOE_BAD_INDEX;
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
tinyqmoe_status check_parts(const Header& header, uint64_t n_bytes, uint32_t flags, tinyqmoe_tensor* tensor) {
  tinyqmoe_info& info = tensor->info;
  const uint8_t* const bytes = tensor->bytes;
  const Layout at(header);
  tinyqmoe_status status = check_sections(header, at);
  if (status != TINYQMOE_OK) return status;
  if (n_bytes < at.total) return TINYQMOE_TRUNCATED;
  if (tinyqmoe_crc32(0, bytes + kHeaderBytes, at.payload - kHeaderBytes) != load<uint32_t>(tensor->header + 48)) {
    return TINYQMOE_BAD_TABLES_CRC;
  }
  info.total_bytes = at.total;
  tensor->payload = bytes + at.payload;
  tensor->row_bytes = packed_row_bytes(info);
  tensor->index = bytes + at.index;
  if (info.codec == kLzw) {
    status = acquire_dictionary(header.shape, bytes + kHeaderBytes, &tensor->dictionary);
    if (status == TINYQMOE_OK) status = read_index(header.index_bytes, tensor);
  }
  if (info.codec == kRaw || info.codec == kBase3) {
    tensor->checked.reset(new (std::nothrow) std::atomic<bool>[n_tiles(info.rows)]());
    if (tensor->checked == nullptr) status = TINYQMOE_OUT_OF_MEMORY;
  }
  if (status == TINYQMOE_OK) status = check_padding(bytes, at);
  if (status != TINYQMOE_OK || (flags & TINYQMOE_VERIFY_PAYLOAD) == 0) return status;
  if (tinyqmoe_crc32(0, tensor->payload, info.payload_bytes) != load<uint32_t>(tensor->header + 52)) {
    return TINYQMOE_BAD_PAYLOAD_CRC;
  }
  return check_rows(*tensor);
}

tinyqmoe_status open_blob(const void* bytes, uint64_t n_bytes, uint32_t flags, bool is_copy, tinyqmoe_tensor** out) {
  if (out == nullptr) return TINYQMOE_BAD_ARGUMENT;
  *out = nullptr;
  if ((flags & ~TINYQMOE_VERIFY_PAYLOAD) != 0) return TINYQMOE_BAD_ARGUMENT;
  if (n_bytes < kHeaderBytes) return TINYQMOE_TRUNCATED;
  if (bytes == nullptr) return TINYQMOE_BAD_ARGUMENT;
  // One copy of the header: what was checked is what is used.
  uint8_t copy[kHeaderBytes];
  std::memcpy(copy, bytes, sizeof copy);
  tinyqmoe_status status = check_header(copy);
  if (status != TINYQMOE_OK) return status;
  const Header header(copy);
  status = check_fields(header, is_copy);
  if (status != TINYQMOE_OK) return status;
  tinyqmoe_tensor* tensor = new (std::nothrow) tinyqmoe_tensor{};
  if (tensor == nullptr) return TINYQMOE_OUT_OF_MEMORY;
  tensor->info = header.info;
  tensor->bytes = static_cast<const uint8_t*>(bytes);
  std::memcpy(tensor->header, copy, sizeof copy);
  status = check_parts(header, n_bytes, flags, tensor);
  if (status != TINYQMOE_OK) {
    tinyqmoe_close(tensor);
    return status;
  }
  *out = tensor;
  return TINYQMOE_OK;
}

}  // namespace

tinyqmoe_status open_copy(const void* bytes, uint64_t n_bytes, uint32_t flags, tinyqmoe_tensor** out) {
  return open_blob(bytes, n_bytes, flags, true, out);
}

}  // namespace tinyqmoe

extern "C" {

tinyqmoe_status tinyqmoe_open(const void* bytes, uint64_t n_bytes, uint32_t flags, tinyqmoe_tensor** out) {
  return tinyqmoe::open_blob(bytes, n_bytes, flags, false, out);
}

void tinyqmoe_close(tinyqmoe_tensor* tensor) {
  if (tensor == nullptr) return;
  tinyqmoe::forget(*tensor);
  tinyqmoe::release_dictionary(tensor->dictionary);
  delete tensor;
}

void tinyqmoe_get_info(const tinyqmoe_tensor* tensor, tinyqmoe_info* info) { *info = tensor->info; }

}  // extern "C"
