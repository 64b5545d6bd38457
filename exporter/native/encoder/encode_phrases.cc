// The encoder of phrases: a parse of each row, and the codewords of what it finds.
#include <algorithm>
#include <memory>
#include <new>

#include "encode.h"

namespace tinyqmoe {
namespace {

// The parse as a finite-state machine. A state is the position in `step` of an inner node's children.
// step[state + child] is the next state, or, at the end of a phrase, kLeaf + entry.
constexpr uint32_t kLeaf = 0x80000000u;

struct Machine {
  std::unique_ptr<uint32_t[]> step;
  uint32_t n_children;
  uint8_t child[256];            // of a level as an unsigned byte
  bool is_escape[kMaxEntries];

  void inner(const TreePath& path, uint32_t number) { set(path, number * n_children); }
  void leaf(const TreePath& path, uint32_t entry) {
    set(path, kLeaf + entry);
    is_escape[entry] = path.child[path.depth - 1] == escape;
  }

  uint32_t escape;

 private:
  void set(const TreePath& path, uint32_t value) {
    const uint32_t parent = path.parent[path.depth - 1];
    step[uint64_t{parent} * n_children + path.child[path.depth - 1]] = value;
  }
};

constexpr uint32_t kLanes = 4;

// Rows are parsed four at a time: a step waits for the one before it, so one row alone would leave the core idle.
struct Parser {
  const Machine& machine;
  uint32_t cols;
  uint8_t level_min;
  uint8_t fill;        // child that completes the last phrase of a row
  uint16_t* codes;     // entry + 256 * offset of the phrase's last level; [kLanes][cols + 1]: one place more, for the
                       // write that a step makes in vain
  uint32_t n_codes[kLanes];

  void parse(const int8_t* const rows[kLanes]) {
    const uint32_t* step = machine.step.get();
    uint32_t state[kLanes] = {};
    uint16_t* out[kLanes];
    for (uint32_t k = 0; k < kLanes; ++k) out[k] = codes_of(k);
    for (uint32_t c = 0; c < cols; ++c) {
      for (uint32_t k = 0; k < kLanes; ++k) {
        const uint8_t level = static_cast<uint8_t>(rows[k][c]);
        const uint32_t next = step[state[k] + machine.child[level]];
        *out[k] = static_cast<uint16_t>((next & 255) | static_cast<uint32_t>(static_cast<uint8_t>(level - level_min)) << 8);
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
      *out = static_cast<uint16_t>(next & 255);
      out += next >> 31;
      state = next & ((next >> 31) - 1);
    }
    n_codes[lane] = static_cast<uint32_t>(out - codes_of(lane));
  }
};

tinyqmoe_status build_machine(const DictionaryShape& shape, int8_t level_min, const uint8_t* tree, Machine* machine) {
  machine->n_children = shape.n_children();
  machine->escape = shape.n_core;
  for (uint32_t offset = 0; offset < 256; ++offset) {
    const uint32_t child = offset - shape.core_first;  // wraps below the core
    const uint8_t level = static_cast<uint8_t>(offset + static_cast<uint8_t>(level_min));
    machine->child[level] = static_cast<uint8_t>(std::min(child, shape.n_children() - 1));
  }
  machine->step.reset(new (std::nothrow) uint32_t[uint64_t{shape.n_inner()} * shape.n_children()]);
  return machine->step == nullptr ? TINYQMOE_OUT_OF_MEMORY : walk_tree(shape, tree, *machine);
}

// Parses all rows; visit(row, codes, n_codes) returns a status.
template <typename Visit>
tinyqmoe_status parse_rows(const tinyqmoe_encode_args& args, const DictionaryShape& shape, const Machine& machine,
                           Visit visit) {
  const uint32_t cols = args.cols;
  const std::unique_ptr<uint16_t[]> codes(new (std::nothrow) uint16_t[kLanes * (uint64_t{cols} + 1)]);
  if (codes == nullptr) return TINYQMOE_OUT_OF_MEMORY;
  // Level 0 where it is in the core.
  const int32_t zero = -args.level_min - static_cast<int32_t>(shape.core_first);
  const bool has_zero = zero >= 0 && zero < static_cast<int32_t>(shape.n_core);
  Parser parser{machine, cols, static_cast<uint8_t>(args.level_min), static_cast<uint8_t>(has_zero ? zero : 0),
                codes.get(), {}};
  for (uint64_t row = 0; row < args.rows; row += kLanes) {
    const uint32_t n = static_cast<uint32_t>(std::min<uint64_t>(kLanes, args.rows - row));
    const int8_t* first = args.levels + row * cols;
    if (!inside_alphabet(first, uint64_t{n} * cols, args.level_min, args.n_levels)) return TINYQMOE_BAD_LEVEL;
    const int8_t* lanes[kLanes];
    for (uint32_t k = 0; k < kLanes; ++k) lanes[k] = first + uint64_t{std::min(k, n - 1)} * cols;
    parser.parse(lanes);
    for (uint32_t k = 0; k < n; ++k) {
      const tinyqmoe_status status = visit(row + k, parser.codes_of(k), parser.n_codes[k]);
      if (status != TINYQMOE_OK) return status;
    }
  }
  return TINYQMOE_OK;
}

// What the codeword of an entry adds to a row.
struct Emission {
  uint32_t bits;      // with those of the level after an escape
  uint32_t value;
  uint32_t shift;     // of that level
  uint32_t mask;      // 255 for an escape, else 0
};

struct RowCoder {
  Emission emissions[kMaxEntries];

  RowCoder(const Codeword* codewords, const Machine& machine, uint32_t n_entries) {
    for (uint32_t entry = 0; entry < n_entries; ++entry) {
      const Codeword& codeword = codewords[entry];
      const bool escape = machine.is_escape[entry];
      emissions[entry] = {codeword.bits == 0 ? 0u : codeword.bits + (escape ? 8u : 0u), codeword.value, codeword.bits,
                          escape ? 255u : 0u};
    }
  }

  // Bits of a row. *complete: every phrase has a codeword.
  uint64_t size(const uint16_t* codes, uint32_t n, bool* complete) const {
    uint64_t bits = 0;
    bool missing = false;
    for (uint32_t i = 0; i < n; ++i) {
      const uint32_t more = emissions[codes[i] & 255].bits;
      missing |= more == 0;
      bits += more;
    }
    *complete = !missing;
    return bits;
  }

  // Writes a row; returns the byte after it.
  uint8_t* put(const uint16_t* codes, uint32_t n, uint8_t* out) const {
    uint64_t pending = 0;
    uint32_t n_pending = 0;
    for (uint32_t i = 0; i < n; ++i) {
      const Emission& e = emissions[codes[i] & 255];
      pending |= static_cast<uint64_t>(e.value | (codes[i] >> 8 & e.mask) << e.shift) << n_pending;
      n_pending += e.bits;
      if (n_pending < 32) continue;
      const uint32_t word = static_cast<uint32_t>(pending);
      std::memcpy(out, &word, sizeof word);
      out += sizeof word;
      pending >>= 32;
      n_pending -= 32;
    }
    for (; n_pending > 0; n_pending -= std::min(n_pending, 8u), pending >>= 8) *out++ = static_cast<uint8_t>(pending);
    return out;
  }
};

struct LzwOutput {
  uint32_t* row_bytes;
  uint8_t* payload;
  uint64_t capacity;
  uint64_t bytes;

  tinyqmoe_status add(const RowCoder& coder, uint64_t row, const uint16_t* codes, uint32_t n) {
    bool complete;
    const uint64_t size = (coder.size(codes, n, &complete) + 7) / 8;
    if (!complete) return TINYQMOE_BAD_CODE;
    row_bytes[row] = static_cast<uint32_t>(size);
    if (payload != nullptr) {
      if (size > capacity - bytes) return TINYQMOE_BUFFER_TOO_SMALL;
      coder.put(codes, n, payload + bytes);
    }
    bytes += size;
    return TINYQMOE_OK;
  }
};

// The parser of a dictionary, checked with all that it is used with.
tinyqmoe_status prepare(const tinyqmoe_encode_args* args, const tinyqmoe_encode_dictionary* dictionary,
                        DictionaryShape* shape, Machine* machine) {
  if (args == nullptr || dictionary == nullptr) return TINYQMOE_BAD_ARGUMENT;
  if (args->levels == nullptr || dictionary->bytes == nullptr) return TINYQMOE_BAD_ARGUMENT;
  *shape = {dictionary->cap, args->n_levels, dictionary->core_first, dictionary->n_core, dictionary->n_entries};
  const tinyqmoe_status status = check_layout(info_of(*args, kLzw, kMaxCodeBits, dictionary->cap), *shape);
  if (status != TINYQMOE_OK) return status;
  if (dictionary->n_bytes != shape->section_bytes()) return TINYQMOE_BAD_DICTIONARY;
  return build_machine(*shape, args->level_min, dictionary->bytes, machine);
}

}  // namespace
}  // namespace tinyqmoe

extern "C" {

tinyqmoe_status tinyqmoe_count_phrases(const tinyqmoe_encode_args* args, const tinyqmoe_encode_dictionary* dictionary,
                                       uint64_t* counts) {
  using namespace tinyqmoe;
  DictionaryShape shape;
  Machine machine;
  const tinyqmoe_status status = counts == nullptr ? TINYQMOE_BAD_ARGUMENT : prepare(args, dictionary, &shape, &machine);
  if (status != TINYQMOE_OK) return status;
  std::fill_n(counts, shape.n_entries, 0);
  return parse_rows(*args, shape, machine, [&](uint64_t, const uint16_t* codes, uint32_t n) {
    for (uint32_t i = 0; i < n; ++i) ++counts[codes[i] & 255];
    return TINYQMOE_OK;
  });
}

tinyqmoe_status tinyqmoe_encode_lzw(const tinyqmoe_encode_args* args, const tinyqmoe_encode_dictionary* dictionary,
                                    uint32_t* row_bytes, uint64_t* payload_bytes) {
  using namespace tinyqmoe;
  if (row_bytes == nullptr || payload_bytes == nullptr) return TINYQMOE_BAD_ARGUMENT;
  DictionaryShape shape;
  Machine machine;
  Codeword codewords[kMaxEntries];
  tinyqmoe_status status = prepare(args, dictionary, &shape, &machine);
  if (status == TINYQMOE_OK) status = read_codewords(shape, dictionary->bytes, codewords);
  if (status != TINYQMOE_OK) return status;
  const RowCoder coder(codewords, machine, shape.n_entries);
  LzwOutput out{row_bytes, args->payload, args->payload_capacity, 0};
  status = parse_rows(*args, shape, machine, [&](uint64_t row, const uint16_t* codes, uint32_t n) {
    return out.add(coder, row, codes, n);
  });
  *payload_bytes = out.bytes;
  if (status != TINYQMOE_OK) return status;
  return out.bytes <= 0xFFFFFFFFu ? TINYQMOE_OK : TINYQMOE_BAD_SECTION;
}

}  // extern "C"
