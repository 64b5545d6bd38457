// What tests and fuzzers share: owners of C objects, blobs made from scratch, and calls that return vectors.
#ifndef TINYQMOE_TESTS_SUPPORT_H_
#define TINYQMOE_TESTS_SUPPORT_H_

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "expand.h"
#include "tinyqmoe/tinyqmoe_encode.h"

namespace tests {

using Bytes = std::vector<uint8_t>;
using Levels = std::vector<int8_t>;
using Floats = std::vector<float>;
using Random = std::mt19937;

struct Close {
  void operator()(tinyqmoe_tensor* tensor) const { tinyqmoe_close(tensor); }
};
using Tensor = std::unique_ptr<tinyqmoe_tensor, Close>;

std::vector<tinyqmoe_isa> available_isas();

struct Spec {
  uint8_t codec;
  uint8_t code_bits;
  uint8_t cap;
  int level_min;
  uint32_t n_levels;
  uint32_t rows;
  uint32_t cols;
  uint32_t core = 0;  // lzw: its levels, which lie in the middle of the alphabet; 0: all of them

  std::string name() const;
  uint32_t n_core() const { return core == 0 ? n_levels : core; }
  uint32_t core_first() const { return (n_levels - n_core()) / 2; }
};

struct RandomDictionary {
  Bytes section;
  uint32_t n_entries;

  tinyqmoe_encode_dictionary of(const Spec& spec) const {
    return {spec.cap, spec.core_first(), spec.n_core(), n_entries, section.data(), section.size()};
  }
};

// A tree with as many leaves as fit, split at random (deep ones first, so that caps are reached), and a complete code
// made by splitting codewords at random.
RandomDictionary random_dictionary(const Spec& spec, Random& random);

using tinyqmoe::kClippedForms;

// Of the levels that so many bits have, and one of so many at a random level of the alphabet; 0: none.
Levels levels_with_exceptions(const Spec& spec, uint32_t bits, uint32_t one_of, Random& random);

// The copy of a tensor in clipped levels, in memory of its size. Throws where its exceptions have no room.
Bytes clipped_copy(const tinyqmoe_tensor* tensor, tinyqmoe::Form form);

// Skewed towards small distances from zero, as weights are.
Levels random_levels(const Spec& spec, Random& random);

// Encodes with the C interface and lays the blob out; the dictionary is for lzw. The status is the encoder's.
tinyqmoe_status encode_blob(const Spec& spec, const Levels& levels, const RandomDictionary& dictionary, Bytes* blob);

// The same with a random dictionary. What tinyqmoe_encode.h says is checked by the tests, so an error here throws.
Bytes make_blob(const Spec& spec, const Levels& levels, Random& random);

// Makes all three CRCs right again, as far as the header's offsets make sense.
void reseal(Bytes* blob);

tinyqmoe_status open(const Bytes& blob, uint32_t flags, Tensor* out);

// Scales of a matrix, wherever they are kept.
struct StoredScales {
  StoredScales(const Floats& floats) : values(floats.data()), type(TINYQMOE_SCALES_FLOAT32) {}
  StoredScales(const void* stored, tinyqmoe_scale_type of) : values(stored), type(of) {}

  const void* values;
  tinyqmoe_scale_type type;
};

struct Product {
  tinyqmoe_status status;
  Floats y;  // [n_tokens, rows]
};

// Quantized activations as tinyqmoe_quantize_x16 wants them: 64-byte aligned, and exactly as large as asked, so that the
// address sanitizer sees the first byte too many.
class Quantized {
 public:
  Quantized(uint32_t cols, uint32_t n_tokens);

  void* bytes() const { return bytes_.get(); }
  // q of one token, int16 [cols].
  std::vector<int16_t> token(uint32_t t) const;

 private:
  uint32_t cols_;
  std::unique_ptr<void, void (*)(void*)> bytes_;
};

// Quantizes x itself. Rows in two calls, to see that calls do not depend on each other.
Product linear_x16(const tinyqmoe_tensor* tensor, const Floats& x, const StoredScales& scales, uint32_t group_size,
                   uint32_t n_tokens, tinyqmoe_isa isa);
Product linear_f32(const tinyqmoe_tensor* tensor, const Floats& x, const StoredScales& scales, uint32_t group_size,
                   uint32_t n_tokens, tinyqmoe_isa isa);

Bytes read_file(const std::string& path);

template <typename T>
uint32_t crc32_of(const std::vector<T>& values) {
  return tinyqmoe_crc32(0, values.data(), values.size() * sizeof(T));
}

}  // namespace tests

#endif  // TINYQMOE_TESTS_SUPPORT_H_
