// Opens arbitrary bytes and reads all rows in every way, with every instruction set: no fault, and all agree.
//
// Seeds: tests/golden/decode and tests/golden/errors.
#include "support.h"
#include "target.h"

namespace {

using namespace tests;

constexpr uint64_t kMostLevels = 1 << 18;  // larger matrices only cost time

struct Results {
  tinyqmoe_status decoded;
  Levels levels;
  Floats embedded;
  Product one_token, two_tokens, floats;
};

Results read_everything(const tinyqmoe_tensor* tensor, const tinyqmoe_info& info, tinyqmoe_isa isa) {
  Results results;
  results.levels.resize(size_t{info.rows} * info.cols);
  results.decoded = tinyqmoe_decode_rows(tensor, 0, info.rows, isa, results.levels.data());
  Floats x(size_t{2} * info.cols);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(static_cast<int>(i * 37 % 255) - 127);
  const uint32_t group_size = info.rows % 2 == 0 ? info.cols : 64;
  const Floats scales(size_t{info.rows} * (info.cols / group_size + 1), 0.5f);
  results.one_token = linear_x16(tensor, x, scales, group_size, 1, isa);
  results.two_tokens = linear_x16(tensor, x, scales, group_size, 2, isa);
  results.floats = linear_f32(tensor, x, scales, group_size, 1, isa);
  const std::vector<int64_t> ids = {info.rows - 1};
  results.embedded.resize(info.cols);
  const tinyqmoe_embedding_args args = {tensor, scales.data(), TINYQMOE_SCALES_FLOAT32, group_size, isa,
                                        ids.data(), 1, results.embedded.data()};
  const tinyqmoe_status status = tinyqmoe_embedding(&args);
  expect(results.decoded != TINYQMOE_OK || status == TINYQMOE_OK, "decode accepts, embedding rejects");
  return results;
}

void compare(const Product& a, const Product& b) {
  expect(a.status == b.status, "instruction sets reject differently");
  expect(a.status != TINYQMOE_OK || crc32_of(a.y) == crc32_of(b.y), "instruction sets give different products");
}

void read_all_ways(const tinyqmoe_tensor* tensor, bool verified) {
  tinyqmoe_info info;
  tinyqmoe_get_info(tensor, &info);
  if (uint64_t{info.rows} * info.cols > kMostLevels) return;
  const Results expected = read_everything(tensor, info, TINYQMOE_ISA_SCALAR);
  const bool fine = expected.decoded == TINYQMOE_OK;
  expect(fine || !verified, "verified, but decode rejects");
  expect((expected.one_token.status == TINYQMOE_OK) == fine, "decode and one token disagree");
  expect((expected.two_tokens.status == TINYQMOE_OK) == fine, "decode and two tokens disagree");
  for (const tinyqmoe_isa isa : available_isas()) {
    const Results results = read_everything(tensor, info, isa);
    expect(results.decoded == expected.decoded, "instruction sets decode differently");
    expect(!fine || results.levels == expected.levels, "instruction sets give different levels");
    expect(!fine || crc32_of(results.embedded) == crc32_of(expected.embedded), "different embeddings");
    compare(results.one_token, expected.one_token);
    compare(results.two_tokens, expected.two_tokens);
    compare(results.floats, expected.floats);
  }
}

// Whether it opens with its CRCs checked.
bool try_blob(const Bytes& blob) {
  bool opened = false;
  for (const uint32_t flags : {0u, TINYQMOE_VERIFY_PAYLOAD}) {
    Tensor tensor;
    const tinyqmoe_status status = open(blob, flags, &tensor);
    expect((status == TINYQMOE_OK) == (tensor != nullptr), "status and tensor disagree");
    if (tensor != nullptr) read_all_ways(tensor.get(), flags != 0);
    opened = tensor != nullptr;
  }
  return opened;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const Bytes given(data, data + size);
  tests::accepted() += try_blob(given);
  Bytes resealed = given;  // a wrong CRC hides all that is read after it
  reseal(&resealed);
  if (resealed != given) try_blob(resealed);
  return 0;
}
