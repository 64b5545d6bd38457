// Opens arbitrary bytes and reads all rows in every way, with every instruction set: no fault, and all agree.
//
// With libFuzzer: clang++ -fsanitize=fuzzer,address,undefined -DTINYQMOE_LIBFUZZER, this file, tests/support.cc and
// core/*.cc and encoder/*.cc, with -Iinclude -Icore -Itests; then `./fuzz_open_decode CORPUS GOLDEN/decode GOLDEN/errors`.
// Without it: any compiler, and a main of its own that mutates seeds: `./fuzz_open_decode SECONDS SEED_FILES...`
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include "support.h"

namespace {

using namespace tests;

constexpr uint64_t kMostLevels = 1 << 18;  // larger matrices only cost time

[[noreturn]] void fail(const char* what) {
  std::printf("%s\n", what);
  std::abort();
}

void expect(bool fine, const char* what) {
  if (!fine) fail(what);
}

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
  const tinyqmoe_embedding_args args = {tensor, scales.data(), group_size, isa, ids.data(), 1, results.embedded.data()};
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

void test_one(const uint8_t* data, size_t size) {
  Bytes blob(data, data + size);
  // A wrong CRC would hide all that comes after it, so the fuzzer's input gets right ones. A reserved byte, which a good
  // blob has as zero, lets it try wrong ones too.
  if (size > 14 && blob[14] == 0) reseal(&blob);
  for (const uint32_t flags : {0u, TINYQMOE_VERIFY_PAYLOAD}) {
    Tensor tensor;
    const tinyqmoe_status status = open(blob, flags, &tensor);
    expect((status == TINYQMOE_OK) == (tensor != nullptr), "status and tensor disagree");
    if (tensor != nullptr) read_all_ways(tensor.get(), flags != 0);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  test_one(data, size);
  return 0;
}

#ifndef TINYQMOE_LIBFUZZER

#include <chrono>

namespace {

void mutate(Bytes* blob, Random& random) {
  for (uint32_t n = random() % 4 + 1; n > 0 && !blob->empty(); --n) {
    // Half of the changes in the first 128 bytes: header and tables matter most.
    const size_t reach = random() % 2 == 0 ? std::min<size_t>(blob->size(), 128) : blob->size();
    const size_t at = random() % reach;
    switch (random() % 5) {
      case 0: (*blob)[at] ^= static_cast<uint8_t>(1u << random() % 8); break;
      case 1: (*blob)[at] = static_cast<uint8_t>(random()); break;
      case 2: (*blob)[at] = random() % 2 == 0 ? 0 : 0xFF; break;
      case 3: std::memmove(blob->data() + at, blob->data(), std::min<size_t>(8, blob->size() - at)); break;
      default:
        if (random() % 8 == 0) blob->resize(at);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::printf("usage: %s SECONDS SEED_FILES...\n", argv[0]);
    return 2;
  }
  std::vector<Bytes> seeds;
  for (int i = 2; i < argc; ++i) seeds.push_back(read_file(argv[i]));
  Random random(static_cast<uint32_t>(std::time(nullptr)));
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(std::atoi(argv[1]));
  uint64_t runs = 0;
  for (; std::chrono::steady_clock::now() < end; ++runs) {
    Bytes blob = seeds[random() % seeds.size()];
    mutate(&blob, random);
    test_one(blob.data(), blob.size());
  }
  std::printf("%llu runs\n", static_cast<unsigned long long>(runs));
  return 0;
}

#endif  // TINYQMOE_LIBFUZZER
