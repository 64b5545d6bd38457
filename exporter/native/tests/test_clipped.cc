// Copies in clipped levels: what becomes an exception, and copies that are none, with too many exceptions, damaged, or given
// for a blob.
#include "clipped.h"

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

using tinyqmoe::Form;
using tinyqmoe::kClippedRows;
using tinyqmoe::kExceptions;

const Spec kSpec = {0, 8, 0, -127, 255, 40, 600};
constexpr uint32_t kRoom = 40 * 600 / tinyqmoe::kWeightsPerBlock;  // blocks of exceptions

tinyqmoe_status expand(const Spec& spec, const Levels& levels, Form form, Bytes* copy) {
  Random random(1);
  const Bytes blob = make_blob(spec, levels, random);
  Tensor tensor;
  CHECK(open(blob, 0, &tensor) == TINYQMOE_OK);
  copy->assign(tinyqmoe::form_bytes(tensor->info, form), 0);
  return tinyqmoe::expand_to_memory(*tensor, form, nullptr, copy->data());
}

tinyqmoe_status open_copy(const Bytes& bytes, uint32_t flags, Tensor* out) {
  tinyqmoe_tensor* tensor = nullptr;
  const tinyqmoe_status status = tinyqmoe::open_copy(bytes.data(), bytes.size(), flags, &tensor);
  out->reset(tensor);
  return status;
}

// The last block that has room, and one more: of a row that is whole in them, and of a row of its own.
void test_room(Form form) {
  const int8_t most = static_cast<int8_t>((1 << tinyqmoe::clipped_bits(form)) / 2 - 1);
  const uint32_t of_row = 600 / kExceptions;
  Bytes copy;
  for (const uint32_t row : {0u, 39u}) {
    g_context = "clipped levels with a row of exceptions, " + std::to_string(row);
    Levels levels(size_t{kSpec.rows} * kSpec.cols, most);
    std::fill_n(levels.begin() + row * kSpec.cols, kSpec.cols, int8_t{100});
    for (uint32_t r = 1; r <= kRoom - of_row; ++r) levels[r * kSpec.cols + r] = static_cast<int8_t>(-most - 2);
    CHECK(expand(kSpec, levels, form, &copy) == TINYQMOE_OK);
    levels[kSpec.cols + 500] = static_cast<int8_t>(most + 1);  // in the block that its row has
    CHECK(expand(kSpec, levels, form, &copy) == TINYQMOE_OK);
    levels[38 * kSpec.cols + 500] = static_cast<int8_t>(most + 1);
    CHECK(expand(kSpec, levels, form, &copy) == TINYQMOE_BUFFER_TOO_SMALL);
    levels[38 * kSpec.cols + 500] = static_cast<int8_t>(-most - 1);
    CHECK(expand(kSpec, levels, form, &copy) == TINYQMOE_OK);
  }
}

// Rows begin blocks of their own, and tiles are where the index says.
void test_blocks(Form form) {
  g_context = "blocks of exceptions";
  const uint32_t counts[] = {0, 1, 7, 8, 9, 16, 17, 0, 0, 40};
  Levels levels(size_t{kSpec.rows} * kSpec.cols);
  uint32_t of_tiles[3] = {};
  for (uint32_t r = 0; r < kSpec.rows; ++r) {
    const uint32_t n = r < 30 ? counts[r % 10] : 0;
    for (uint32_t i = 0; i < n; ++i) levels[r * kSpec.cols + 599 - 3 * i] = static_cast<int8_t>(i % 2 == 0 ? -127 : 127);
    of_tiles[r / kClippedRows] += (n + kExceptions - 1) / kExceptions;
  }
  Bytes copy;
  CHECK(expand(kSpec, levels, form, &copy) == TINYQMOE_OK);
  uint32_t begin = 0;
  for (uint32_t tile = 0; tile < 3; ++tile) {
    CHECK(tinyqmoe::load<uint32_t>(copy.data() + 64 + 4 * tile) == begin);
    begin += of_tiles[tile];
  }
  CHECK(tinyqmoe::load<uint32_t>(copy.data() + 64 + 12) == begin);
  Tensor tensor;
  CHECK(open_copy(copy, 0, &tensor) == TINYQMOE_OK);
  Levels decoded(levels.size());
  CHECK(tinyqmoe_decode_rows(tensor.get(), 0, kSpec.rows, TINYQMOE_ISA_AUTO, decoded.data()) == TINYQMOE_OK);
  CHECK(decoded == levels);
}

// A row of one exception after the other: its sum needs more than 32 bits.
void test_large_sums() {
  const Spec spec = {0, 8, 0, -128, 256, 33, 60000};
  g_context = "exceptions whose sum needs more than 32 bits";
  Levels levels(size_t{spec.rows} * spec.cols);
  std::fill_n(levels.begin() + 3 * spec.cols, spec.cols, int8_t{-128});
  Bytes copy;
  CHECK(expand(spec, levels, Form::kClipped4, &copy) == TINYQMOE_OK);
  Tensor tensor;
  CHECK(open_copy(copy, 0, &tensor) == TINYQMOE_OK);
  const Floats x(spec.cols, 1.0f), scales(spec.rows, 1.0f);
  const float x_scale = 1.0f / 32512.0f, sum = static_cast<float>(int64_t{-128} * 60000 * 32512);
  for (const tinyqmoe_isa isa : available_isas()) {
    const Product product = linear_x16(tensor.get(), x, scales, spec.cols, 1, isa);
    CHECK(product.status == TINYQMOE_OK && product.y[3] == sum * x_scale && product.y[4] == 0.0f);
  }
}

void test_what_is_no_copy(Form form) {
  const uint8_t bits = static_cast<uint8_t>(form);
  Random random(2);
  const Levels levels = levels_with_exceptions(kSpec, bits, 50, random);
  Bytes copy;
  CHECK(expand(kSpec, levels, form, &copy) == TINYQMOE_OK);
  Tensor tensor;
  g_context = "clipped levels in the place of a blob";
  CHECK(open(copy, 0, &tensor) == TINYQMOE_BAD_CODEC);
  g_context = "clipped levels of another shape or alphabet";
  const uint8_t other = bits == 4 ? 5 : 4, n_levels = static_cast<uint8_t>(1 << bits);
  for (const auto& [at, value, status] :
       {std::tuple<size_t, uint8_t, tinyqmoe_status>{9, 8, TINYQMOE_BAD_CODEC}, {9, 3, TINYQMOE_BAD_CODEC},
        {9, 7, TINYQMOE_BAD_CODEC}, {9, other, TINYQMOE_BAD_SECTION}, {10, 3, TINYQMOE_BAD_CODEC},
        {12, n_levels, TINYQMOE_BAD_ALPHABET}, {14, 1, TINYQMOE_BAD_ALPHABET}, {16, 41, TINYQMOE_BAD_SECTION},
        {56, 4, TINYQMOE_BAD_SECTION}, {40, 1, TINYQMOE_BAD_SECTION}}) {
    Bytes changed = copy;
    changed[at] = value;
    if (at == 12) changed[13] = 0;
    reseal(&changed);
    CHECK(open_copy(changed, 0, &tensor) == status);
  }
}

// Whatever the index says, nothing past its end is read: the sanitizers see to it.
void test_damaged_index(Form form) {
  Random random(3);
  const Levels levels = levels_with_exceptions(kSpec, tinyqmoe::clipped_bits(form), 50, random);
  Bytes copy;
  CHECK(expand(kSpec, levels, form, &copy) == TINYQMOE_OK);
  const Floats x(kSpec.cols, 1.0f), scales(size_t{kSpec.rows} * 10, 1.0f);
  uint32_t refused = 0;
  for (int round = 0; round < 200; ++round) {
    g_context = "clipped levels with a damaged index, round " + std::to_string(round);
    Bytes changed = copy;
    const size_t end = 64 + tinyqmoe::clipped_begins_bytes(kSpec.rows) +
                       (round % 2 == 0 ? 0 : kRoom * tinyqmoe::kExceptionBytes);
    for (int i = 0; i < 1 + round / 10; ++i) changed[64 + random() % (end - 64)] = static_cast<uint8_t>(random());
    reseal(&changed);
    Tensor tensor;
    refused += open_copy(changed, TINYQMOE_VERIFY_PAYLOAD, &tensor) != TINYQMOE_OK;
    CHECK(open_copy(changed, 0, &tensor) == TINYQMOE_OK);
    for (const tinyqmoe_isa isa : available_isas()) {
      CHECK(linear_x16(tensor.get(), x, scales, kSpec.cols, 1, isa).status == TINYQMOE_OK);
    }
    linear_x16(tensor.get(), x, scales, 64, 1, TINYQMOE_ISA_AUTO);
    Levels decoded(levels.size());
    tinyqmoe_decode_rows(tensor.get(), 0, kSpec.rows, TINYQMOE_ISA_AUTO, decoded.data());
  }
  CHECK(refused > 50);
}

}  // namespace

void test_clipped() {
  for (const Form form : kClippedForms) {
    test_room(form);
    test_blocks(form);
    test_what_is_no_copy(form);
    test_damaged_index(form);
  }
  test_large_sums();
}

}  // namespace tests
