// Copies in nibbles that are none: with too many exceptions, damaged, or given for a blob.
#include "nibbles.h"

#include <algorithm>
#include <string>
#include <tuple>

#include "check.h"
#include "expand.h"
#include "rows.h"
#include "support.h"
#include "tests.h"

namespace tests {
namespace {

const Spec kSpec = {0, 8, 0, -127, 255, 40, 600};
constexpr uint32_t kRoom = 40 * 600 / tinyqmoe::kWeightsPerException;

tinyqmoe_status expand(const Spec& spec, const Levels& levels, Bytes* copy) {
  Random random(1);
  const Bytes blob = make_blob(spec, levels, random);
  Tensor tensor;
  CHECK(open(blob, 0, &tensor) == TINYQMOE_OK);
  copy->assign(tinyqmoe::form_bytes(tensor->info, tinyqmoe::Form::kNibbles), 0);
  return tinyqmoe::expand_to_memory(*tensor, tinyqmoe::Form::kNibbles, nullptr, copy->data());
}

tinyqmoe_status open_copy(const Bytes& bytes, uint32_t flags, Tensor* out) {
  tinyqmoe_tensor* tensor = nullptr;
  const tinyqmoe_status status = tinyqmoe::open_copy(bytes.data(), bytes.size(), flags, &tensor);
  out->reset(tensor);
  return status;
}

// The last exception that has room, and one more: in a row of its own, and in a row that is whole in them.
void test_room() {
  Bytes copy;
  for (const uint32_t begin : {0u, 600u, 20000u}) {
    g_context = "nibbles with exceptions from " + std::to_string(begin);
    Levels levels(size_t{kSpec.rows} * kSpec.cols);
    std::fill_n(levels.begin() + begin, kRoom, int8_t{100});
    CHECK(expand(kSpec, levels, &copy) == TINYQMOE_OK);
    levels[begin < 600 ? 20000 : 0] = -9;
    CHECK(expand(kSpec, levels, &copy) == TINYQMOE_BUFFER_TOO_SMALL);
    levels[begin < 600 ? 20000 : 0] = -8;
    CHECK(expand(kSpec, levels, &copy) == TINYQMOE_OK);
  }
}

// Exceptions that are 15 columns apart, or 16, need none between them, or one.
void test_distances() {
  const Spec spec = {0, 8, 0, -127, 255, 1, 8000};
  for (const uint32_t distance : {1u, 14u, 15u, 16u, 30u, 31u, 1999u}) {
    g_context = "nibbles with exceptions " + std::to_string(distance) + " columns apart";
    Levels levels(spec.cols);
    uint32_t n = 0, left = spec.cols / tinyqmoe::kWeightsPerException;
    for (uint32_t at = distance; at < spec.cols && left > (distance - 1) / 15; at += distance) {
      levels[at] = static_cast<int8_t>(n % 2 == 0 ? -127 : 127);
      n += 1 + (distance - 1) / 15;
      left -= 1 + (distance - 1) / 15;
    }
    Bytes copy;
    CHECK(expand(spec, levels, &copy) == TINYQMOE_OK);
    CHECK(n > 0 && tinyqmoe::load<uint32_t>(copy.data() + 64 + 4) == n);
    Tensor tensor;
    CHECK(open_copy(copy, 0, &tensor) == TINYQMOE_OK);
    Levels decoded(levels.size());
    CHECK(tinyqmoe_decode_rows(tensor.get(), 0, 1, TINYQMOE_ISA_AUTO, decoded.data()) == TINYQMOE_OK);
    CHECK(decoded == levels);
  }
}

void test_what_is_no_copy() {
  Random random(2);
  const Levels levels = levels_with_exceptions(kSpec, 50, random);
  Bytes copy;
  CHECK(expand(kSpec, levels, &copy) == TINYQMOE_OK);
  Tensor tensor;
  g_context = "nibbles in the place of a blob";
  CHECK(open(copy, 0, &tensor) == TINYQMOE_BAD_CODEC);
  g_context = "nibbles of another shape or alphabet";
  for (const auto& [at, value, status] :
       {std::tuple<size_t, uint8_t, tinyqmoe_status>{9, 8, TINYQMOE_BAD_CODEC}, {10, 3, TINYQMOE_BAD_CODEC},
        {12, 16, TINYQMOE_BAD_ALPHABET}, {14, 1, TINYQMOE_BAD_ALPHABET}, {16, 41, TINYQMOE_BAD_SECTION},
        {56, 4, TINYQMOE_BAD_SECTION}, {40, 1, TINYQMOE_BAD_SECTION}}) {
    Bytes changed = copy;
    changed[at] = value;
    if (at == 12) changed[13] = 0;
    reseal(&changed);
    CHECK(open_copy(changed, 0, &tensor) == status);
  }
}

// Whatever the index says, nothing past its end is read: the sanitizers see to it.
void test_damaged_index() {
  Random random(3);
  const Levels levels = levels_with_exceptions(kSpec, 50, random);
  Bytes copy;
  CHECK(expand(kSpec, levels, &copy) == TINYQMOE_OK);
  const Floats x(kSpec.cols, 1.0f), scales(size_t{kSpec.rows} * 10, 1.0f);
  uint32_t refused = 0;
  for (int round = 0; round < 200; ++round) {
    g_context = "nibbles with a damaged index, round " + std::to_string(round);
    Bytes changed = copy;
    const size_t end = 64 + tinyqmoe::nibble_begins_bytes(kSpec.rows) + (round % 2 == 0 ? 0 : 2 * kRoom);
    for (int i = 0; i < 1 + round / 10; ++i) changed[64 + random() % (end - 64)] = static_cast<uint8_t>(random());
    reseal(&changed);
    Tensor tensor;
    refused += open_copy(changed, TINYQMOE_VERIFY_PAYLOAD, &tensor) != TINYQMOE_OK;
    CHECK(open_copy(changed, 0, &tensor) == TINYQMOE_OK);
    for (const uint32_t group : {kSpec.cols, 64u}) {
      CHECK(linear_x16(tensor.get(), x, scales, group, 1, TINYQMOE_ISA_AUTO).status == TINYQMOE_OK);
    }
    Levels decoded(levels.size());
    tinyqmoe_decode_rows(tensor.get(), 0, kSpec.rows, TINYQMOE_ISA_AUTO, decoded.data());
  }
  CHECK(refused > 50);
}

}  // namespace

void test_nibbles() {
  test_room();
  test_distances();
  test_what_is_no_copy();
  test_damaged_index();
}

}  // namespace tests
