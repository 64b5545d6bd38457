// The encoder: counting levels, and coding rows with a dictionary or as packed offsets.
#include <algorithm>
#include <memory>
#include <new>

#include "bytes.h"
#include "tensor.h"
#include "tinyqmoe/tinyqmoe_encode.h"

namespace tinyqmoe {
namespace {

// The parse as a finite-state machine. A state is the position in `step` of an inner node's children.
// step[state + offset] is the next state, or, at the end of a phrase, kLeaf + codeword.
constexpr uint32_t kLeaf = 0x80000000u;

struct Machine {
  std::unique_ptr<uint32_t[]> step;
  uint32_t n_levels;

  void inner(const TreePath& path, uint32_t number) { set(path, number * n_levels); }
  void leaf(const TreePath& path, uint32_t codeword) { set(path, kLeaf + codeword); }

 private:
  void set(const TreePath& path, uint32_t value) {
    const uint32_t parent = path.parent[path.depth - 1];
    step[uint64_t{parent} * n_levels + path.child[path.depth - 1]] = value;
  }
};

constexpr uint32_t kLanes = 4;

// Rows are parsed four at a time: a step waits for the one before it, so one row alone would leave the core idle.
struct Parser {
  const Machine& machine;
  uint32_t cols;
  uint8_t level_min;
  uint8_t fill;        // offset that completes the last phrase of a row
  uint16_t* codes;     // [kLanes][cols + 1]: one place more, for the write that a step makes in vain
  uint32_t n_codes[kLanes];

  void parse(const int8_t* const rows[kLanes]) {
    const uint32_t* step = machine.step.get();
    uint32_t state[kLanes] = {};
    uint16_t* out[kLanes];
    for (uint32_t k = 0; k < kLanes; ++k) out[k] = codes_of(k);
    for (uint32_t c = 0; c < cols; ++c) {
      for (uint32_t k = 0; k < kLanes; ++k) {
        const uint32_t next = step[state[k] + static_cast<uint8_t>(static_cast<uint8_t>(rows[k][c]) - level_min)];
        *out[k] = static_cast<uint16_t>(next);
        out[k] += next >> 31;
        state[k] = next & ((next >> 31) - 1);
      }
    }
    for (uint32_t k = 0; k < kLanes; ++k) finish(k, state[k], out[k]);
  }

  uint16_t* codes_of(uint32_t lane) const { return codes + uint64_t{lane} * (uint64_t{cols} + 1); }

 private:
  void finish(uint32_t lane, uint32_t state, uint16_t* out) {
    while (state != 0) {
      const uint32_t next = machine.step[state + fill];
      *out = static_cast<uint16_t>(next);
      out += next >> 31;
      state = next & ((next >> 31) - 1);
    }
    n_codes[lane] = static_cast<uint32_t>(out - codes_of(lane));
  }
};

uint64_t coded_bytes(uint64_t n_codes, uint32_t code_bits) { return (n_codes * code_bits + 7) / 8; }

void pack_codes(const uint16_t* codes, uint32_t n, uint32_t code_bits, uint8_t* out) {
  if (code_bits == 16) {
    std::memcpy(out, codes, uint64_t{n} * 2);
    return;
  }
  if (code_bits == 8) {
    for (uint32_t i = 0; i < n; ++i) out[i] = static_cast<uint8_t>(codes[i]);
    return;
  }
  for (uint32_t i = 0; i < n; i += 2) {
    const uint32_t second = i + 1 < n ? codes[i + 1] : 0;
    const uint32_t pair = codes[i] | second << 12;
    *out++ = static_cast<uint8_t>(pair);
    *out++ = static_cast<uint8_t>(pair >> 8);
    if (i + 1 < n) *out++ = static_cast<uint8_t>(pair >> 16);
  }
}

bool inside_alphabet(const int8_t* levels, uint64_t n, int32_t level_min, uint32_t n_levels) {
  uint8_t largest = 0;
  for (uint64_t i = 0; i < n; ++i) {
    largest = std::max(largest, static_cast<uint8_t>(static_cast<uint8_t>(levels[i]) - static_cast<uint8_t>(level_min)));
  }
  return largest < n_levels;
}

tinyqmoe_status build_machine(const DictionaryShape& shape, const uint8_t* dictionary, Machine* machine) {
  machine->n_levels = shape.n_levels;
  machine->step.reset(new (std::nothrow) uint32_t[uint64_t{shape.n_inner()} * shape.n_levels]);
  if (machine->step == nullptr) return TINYQMOE_OUT_OF_MEMORY;
  return walk_tree(shape, dictionary, *machine);
}

struct LzwOutput {
  uint16_t* row_codes;
  uint8_t* payload;
  uint64_t capacity;
  uint64_t bytes;
};

tinyqmoe_status put_row(const uint16_t* codes, uint32_t n_codes, uint32_t code_bits, uint32_t row, LzwOutput* out) {
  const uint64_t size = coded_bytes(n_codes, code_bits);
  out->row_codes[row] = static_cast<uint16_t>(n_codes);
  if (out->payload != nullptr) {
    if (size > out->capacity - out->bytes) return TINYQMOE_BUFFER_TOO_SMALL;
    pack_codes(codes, n_codes, code_bits, out->payload + out->bytes);
  }
  out->bytes += size;
  return TINYQMOE_OK;
}

tinyqmoe_status encode_rows(const tinyqmoe_encode_args& args, const Machine& machine, LzwOutput* out) {
  const uint32_t cols = args.cols;
  const int8_t level_min = args.level_min;
  const std::unique_ptr<uint16_t[]> codes(new (std::nothrow) uint16_t[kLanes * (uint64_t{cols} + 1)]);
  if (codes == nullptr) return TINYQMOE_OUT_OF_MEMORY;
  const bool has_zero = level_min <= 0 && level_min + static_cast<int32_t>(args.n_levels) > 0;
  Parser parser{machine, cols, static_cast<uint8_t>(level_min), static_cast<uint8_t>(has_zero ? -level_min : 0),
                codes.get(), {}};
  for (uint64_t row = 0; row < args.rows; row += kLanes) {
    const uint32_t n = static_cast<uint32_t>(std::min<uint64_t>(kLanes, args.rows - row));
    const int8_t* first = args.levels + row * cols;
    if (!inside_alphabet(first, uint64_t{n} * cols, level_min, args.n_levels)) return TINYQMOE_BAD_LEVEL;
    const int8_t* lanes[kLanes];
    for (uint32_t k = 0; k < kLanes; ++k) lanes[k] = first + uint64_t{std::min(k, n - 1)} * cols;
    parser.parse(lanes);
    for (uint32_t k = 0; k < n; ++k) {
      const tinyqmoe_status status = put_row(parser.codes_of(k), parser.n_codes[k], args.code_bits,
                                             static_cast<uint32_t>(row + k), out);
      if (status != TINYQMOE_OK) return status;
    }
  }
  return TINYQMOE_OK;
}

tinyqmoe_status check_layout(Codec codec, uint32_t cap, const tinyqmoe_encode_args& args) {
  tinyqmoe_status status = check_codec(codec, args.code_bits, cap);
  if (status == TINYQMOE_OK) status = check_alphabet(args.code_bits, args.level_min, args.n_levels);
  return status == TINYQMOE_OK ? check_shape(args.rows, args.cols) : status;
}

// One raw row.
void pack_levels(const int8_t* levels, const tinyqmoe_encode_args& args, uint8_t* out) {
  const uint32_t per_byte = 8 / args.code_bits;
  const uint8_t bias = static_cast<uint8_t>(args.level_min);
  for (uint32_t c = 0; c < args.cols; c += per_byte) {
    uint32_t byte = 0;
    for (uint32_t k = 0; k < per_byte && c + k < args.cols; ++k) {
      byte |= static_cast<uint32_t>(static_cast<uint8_t>(static_cast<uint8_t>(levels[c + k]) - bias))
              << (k * args.code_bits);
    }
    *out++ = static_cast<uint8_t>(byte);
  }
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

tinyqmoe_status tinyqmoe_encode_lzw(const tinyqmoe_encode_args* args, const tinyqmoe_encode_dictionary* dictionary,
                                    uint16_t* row_codes, uint64_t* payload_bytes) {
  using namespace tinyqmoe;
  if (args == nullptr || dictionary == nullptr || row_codes == nullptr || payload_bytes == nullptr) {
    return TINYQMOE_BAD_ARGUMENT;
  }
  if (args->levels == nullptr || dictionary->bytes == nullptr) return TINYQMOE_BAD_ARGUMENT;
  const DictionaryShape shape{args->code_bits, dictionary->cap, args->n_levels, dictionary->n_entries};
  tinyqmoe_status status = check_layout(kLzw, dictionary->cap, *args);
  if (status == TINYQMOE_OK) status = check_entries(kLzw, shape.code_bits, shape.n_levels, shape.n_entries);
  if (status != TINYQMOE_OK) return status;
  if (dictionary->n_bytes != shape.section_bytes()) return TINYQMOE_BAD_DICTIONARY;
  Machine machine;
  status = build_machine(shape, dictionary->bytes, &machine);
  if (status != TINYQMOE_OK) return status;
  LzwOutput out{row_codes, args->payload, args->payload_capacity, 0};
  status = encode_rows(*args, machine, &out);
  *payload_bytes = out.bytes;
  if (status != TINYQMOE_OK) return status;
  return out.bytes <= 0xFFFFFFFFu ? TINYQMOE_OK : TINYQMOE_BAD_SECTION;
}

tinyqmoe_status tinyqmoe_encode_raw(const tinyqmoe_encode_args* args) {
  using namespace tinyqmoe;
  if (args == nullptr || args->levels == nullptr || args->payload == nullptr) return TINYQMOE_BAD_ARGUMENT;
  const tinyqmoe_status status = check_layout(kRaw, 0, *args);
  if (status != TINYQMOE_OK) return status;
  const uint64_t row_bytes = coded_bytes(args->cols, args->code_bits);
  if (args->payload_capacity < row_bytes * args->rows) return TINYQMOE_BUFFER_TOO_SMALL;
  for (uint64_t row = 0; row < args->rows; ++row) {
    const int8_t* const levels = args->levels + row * args->cols;
    if (!inside_alphabet(levels, args->cols, args->level_min, args->n_levels)) return TINYQMOE_BAD_LEVEL;
    pack_levels(levels, *args, args->payload + row * row_bytes);
  }
  return TINYQMOE_OK;
}

}  // extern "C"
