// Encodes arbitrary levels with arbitrary parameters and an arbitrary dictionary: it is refused, or the blob opens and
// decodes to the same levels.
//
// The input: ten bytes of parameters, a byte with the size of the dictionary, the dictionary, and the levels, which are
// repeated as often as the shape needs.
#include <algorithm>

#include "support.h"
#include "target.h"

namespace {

using namespace tests;

constexpr uint32_t kMostRows = 40, kMostCols = 200;  // two tiles; larger matrices only cost time

// Takes bytes from the front; where there are none left, zeros.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : at_(data), left_(size) {}

  uint8_t byte() {
    if (left_ == 0) return 0;
    --left_;
    return *at_++;
  }

  Bytes bytes(size_t n) {
    Bytes taken;
    for (n = std::min(n, left_); n > 0; --n) taken.push_back(byte());
    return taken;
  }

  size_t left() const { return left_; }

 private:
  const uint8_t* at_;
  size_t left_;
};

Spec read_spec(Input* input) {
  Spec spec = {};
  spec.codec = static_cast<uint8_t>(input->byte() % 3);
  spec.code_bits = input->byte();
  spec.cap = input->byte();
  spec.level_min = static_cast<int8_t>(input->byte());
  spec.n_levels = input->byte() + 1u;
  spec.rows = input->byte() % (kMostRows + 1);
  spec.cols = input->byte() % (kMostCols + 1);
  spec.core = input->byte() + 1u;
  // What the encoder is not asked for.
  if (spec.codec != 0) spec.code_bits = spec.codec == 1 ? 12 : 8;
  if (spec.codec != 1) spec.cap = spec.codec == 0 ? 0 : 5;
  return spec;
}

void try_dictionary(const Spec& spec, const Levels& levels, const RandomDictionary& dictionary) {
  const tinyqmoe_encode_dictionary tables = dictionary.of(spec);
  const tinyqmoe_encode_args args = {levels.data(), spec.rows, spec.cols, static_cast<int8_t>(spec.level_min),
                                     spec.n_levels, spec.code_bits, nullptr, 0};
  std::vector<uint64_t> counts(dictionary.n_entries);
  tinyqmoe_count_phrases(&args, &tables, counts.data());
}

void check_round_trip(const Spec& spec, const Bytes& blob, const Levels& levels) {
  Tensor tensor;
  expect(open(blob, TINYQMOE_VERIFY_PAYLOAD, &tensor) == TINYQMOE_OK, "what was encoded does not open");
  for (const tinyqmoe_isa isa : available_isas()) {
    Levels decoded(levels.size());
    expect(tinyqmoe_decode_rows(tensor.get(), 0, spec.rows, isa, decoded.data()) == TINYQMOE_OK, "it does not decode");
    expect(decoded == levels, "other levels come back");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  const Spec spec = read_spec(&input);
  RandomDictionary dictionary{{}, input.byte() + 1u};
  const bool any_level = input.byte() % 8 == 7;  // those outside the alphabet too
  dictionary.section = input.bytes(input.byte());
  if (spec.n_core() > spec.n_levels) return -1;  // core_first() has no meaning
  const Bytes pattern = input.bytes(input.left());
  Levels levels(size_t{spec.rows} * spec.cols);
  for (size_t i = 0; i < levels.size(); ++i) {
    const uint32_t value = pattern.empty() ? 0 : pattern[i % pattern.size()];
    levels[i] = static_cast<int8_t>(any_level ? value : static_cast<uint32_t>(spec.level_min) + value % spec.n_levels);
  }
  if (spec.codec == 1) try_dictionary(spec, levels, dictionary);
  Bytes blob;
  const bool encoded = encode_blob(spec, levels, dictionary, &blob) == TINYQMOE_OK;
  if (encoded) check_round_trip(spec, blob, levels);
  tests::accepted() += encoded;
  return 0;
}
