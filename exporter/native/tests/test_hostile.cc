// Bytes that lie: payloads and indexes that change after they were opened, and blobs that were sealed again.
#include <cstring>

#include "check.h"
#include "support.h"
#include "tests.h"

namespace tests {
namespace {

const Spec kSpecs[] = {
    {1, 12, 6, -1, 3, 9, 300},     {1, 12, 14, -4, 9, 9, 65, 3}, {1, 12, 3, -1, 3, 9, 300},    {1, 12, 14, -1, 3, 9, 300},
    {1, 12, 6, -7, 15, 40, 100},   {1, 12, 3, -7, 15, 9, 300, 4}, {1, 12, 6, -1, 3, 70, 3},     {0, 2, 0, -1, 3, 9, 300},
    {0, 8, 0, -127, 255, 9, 300},  {0, 4, 0, -7, 15, 9, 129},    {1, 12, 14, 0, 2, 9, 1},      {1, 12, 6, -100, 201, 9, 90},
    {1, 12, 3, -127, 255, 9, 400, 40}, {2, 8, 5, -1, 3, 9, 300}, {2, 8, 5, -1, 3, 9, 320},
};

struct Statuses {
  tinyqmoe_status decode, one_token, two_tokens, floats;

  bool operator==(const Statuses& o) const {
    return decode == o.decode && one_token == o.one_token && two_tokens == o.two_tokens && floats == o.floats;
  }
};

Statuses read_everything(const tinyqmoe_tensor* tensor, tinyqmoe_isa isa) {
  tinyqmoe_info info;
  tinyqmoe_get_info(tensor, &info);
  Levels levels(size_t{info.rows} * info.cols);
  const Floats scales(info.rows, 1.0f);
  const Floats x(size_t{2} * info.cols, 0.5f);
  return {tinyqmoe_decode_rows(tensor, 0, info.rows, isa, levels.data()),
          linear_x16(tensor, x, scales, info.cols, 1, isa).status,
          linear_x16(tensor, x, scales, info.cols, 2, isa).status,
          linear_f32(tensor, x, scales, info.cols, 2, isa).status};
}

// All instruction sets reject with the same status, and all ways of reading agree whether the rows are fine.
void compare_all(const tinyqmoe_tensor* tensor) {
  const Statuses expected = read_everything(tensor, TINYQMOE_ISA_SCALAR);
  const bool fine = expected.decode == TINYQMOE_OK;
  CHECK((expected.one_token == TINYQMOE_OK) == fine);
  CHECK((expected.two_tokens == TINYQMOE_OK) == fine);
  CHECK((expected.floats == TINYQMOE_OK) == fine);
  for (const tinyqmoe_isa isa : available_isas()) CHECK(read_everything(tensor, isa) == expected);
}

void spoil(uint8_t* bytes, size_t n, int round, Random& random) {
  if (round % 2 == 1) {
    bytes[random() % n] ^= static_cast<uint8_t>(1u << random() % 8);
    return;
  }
  for (size_t i = 0; i < n; ++i) bytes[i] = static_cast<uint8_t>(round == 0 ? 0 : round == 2 ? 0xFF : random());
}

// The tensor reads `blob` in place: parts of it change under an open tensor, and are put right again. Whatever they are,
// nothing outside the bytes is touched.
void test_changes(const Spec& spec, Bytes blob, Random& random) {
  Tensor tensor;
  CHECK(open(blob, TINYQMOE_VERIFY_PAYLOAD, &tensor) == TINYQMOE_OK);
  if (tensor == nullptr) return;
  tinyqmoe_info info;
  tinyqmoe_get_info(tensor.get(), &info);
  uint64_t payload;
  std::memcpy(&payload, blob.data() + 32, sizeof payload);
  const Bytes good = blob;
  for (int round = 0; round < 80; ++round) {
    g_context = spec.name() + " payload " + std::to_string(round);
    spoil(blob.data() + payload, info.payload_bytes, round, random);
    Tensor fresh;  // levels that are packed are checked at most once for a tensor that is open
    CHECK(open(blob, 0, &fresh) == TINYQMOE_OK);
    compare_all(spec.codec == 1 ? tensor.get() : fresh.get());
    for (const tinyqmoe_isa isa : available_isas()) read_everything(tensor.get(), isa);
    std::memcpy(blob.data(), good.data(), good.size());
  }
  for (int round = 0; spec.codec == 1 && round < 40; ++round) {
    g_context = spec.name() + " tables " + std::to_string(round);
    spoil(blob.data() + 64, payload - 64, round, random);
    compare_all(tensor.get());
    std::memcpy(blob.data(), good.data(), good.size());
  }
}

// A few bytes of header or tables change, and every CRC is right again.
void test_sealed(const Spec& spec, const Bytes& good, Random& random) {
  for (int round = 0; round < 250; ++round) {
    g_context = spec.name() + " sealed " + std::to_string(round);
    Bytes blob = good;
    const size_t reach = round % 2 == 0 ? 64 : blob.size();
    for (uint32_t k = 0; k <= random() % 3; ++k) blob[random() % reach] ^= static_cast<uint8_t>(1u << random() % 8);
    reseal(&blob);
    Tensor tensor;
    const tinyqmoe_status status = open(blob, round % 3 == 0 ? TINYQMOE_VERIFY_PAYLOAD : 0, &tensor);
    CHECK((status == TINYQMOE_OK) == (tensor != nullptr));
    if (tensor != nullptr) compare_all(tensor.get());
  }
}

}  // namespace

void test_hostile() {
  Random random(4);
  for (const Spec& spec : kSpecs) {
    const Bytes blob = make_blob(spec, random_levels(spec, random), random);
    test_changes(spec, blob, random);
    test_sealed(spec, blob, random);
  }
}

}  // namespace tests
