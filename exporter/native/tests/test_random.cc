// Random matrices of many shapes against plain formulas, with every instruction set.
#include <cmath>
#include <cstring>

#include "activations.h"
#include "check.h"
#include "clipped.h"
#include "support.h"
#include "tests.h"

namespace tests {
namespace {

const Spec kSpecs[] = {
    // codec, code_bits, cap, level_min, n_levels, rows, cols
    {0, 2, 0, -1, 3, 5, 1},        {0, 2, 0, -1, 3, 33, 43},      {0, 2, 0, -1, 3, 9, 2048},
    {0, 2, 0, -2, 4, 6, 172},      {0, 2, 0, 0, 2, 3, 129},       {0, 4, 0, -7, 15, 7, 7},
    {0, 4, 0, -8, 16, 5, 2048},    {0, 2, 0, -1, 3, 6, 576},      {0, 4, 0, -8, 16, 5, 96},
    {0, 2, 0, -1, 3, 6, 96},       {0, 2, 0, -1, 3, 5, 384},      {0, 2, 0, -2, 4, 5, 768},
    {0, 4, 0, -8, 16, 5, 192},     {0, 4, 0, -7, 15, 6, 384},
    {0, 4, 0, 3, 9, 3, 65},        {0, 8, 0, -127, 255, 37, 43},
    {0, 8, 0, -127, 255, 6, 2048}, {0, 8, 0, -128, 256, 5, 172},  {0, 8, 0, -64, 128, 4, 1000},
    {0, 8, 0, -64, 129, 4, 1000},  {0, 8, 0, -20, 131, 4, 96},    {1, 12, 6, -1, 3, 33, 43},
    {1, 12, 14, -1, 3, 70, 172},   {1, 12, 3, -1, 3, 65, 172},    {1, 12, 6, -1, 3, 5, 2048},
    {1, 12, 14, -1, 3, 31, 1},     {1, 12, 14, -1, 3, 32, 7},     {1, 12, 14, -1, 3, 9, 2048},
    {1, 12, 6, 0, 2, 6, 300},      {1, 12, 6, -16, 33, 5, 500},   {1, 12, 3, -16, 34, 5, 500, 33},
    {1, 12, 3, -127, 255, 5, 300}, {1, 12, 14, -128, 256, 3, 43}, {1, 12, 6, -128, 256, 3, 100, 17},
    {1, 12, 3, -64, 128, 4, 222, 64}, {1, 12, 6, 5, 3, 4, 100},   {1, 12, 14, -9, 3, 4, 100, 1},
    {1, 12, 14, -1, 3, 2, 9000},   {1, 12, 6, -127, 255, 9, 900, 7}, {2, 8, 5, -1, 3, 33, 43},
    {2, 8, 5, -1, 3, 5, 2048},     {2, 8, 5, 4, 3, 9, 160},       {2, 8, 5, -128, 3, 3, 1},
    {2, 8, 5, -1, 3, 7, 161},      {2, 8, 5, -1, 3, 65, 576},     {2, 8, 5, -1, 3, 2, 6},
};

Floats random_floats(size_t n, float scale, Random& random) {
  std::normal_distribution<float> normal(0.0f, scale);
  Floats values(n);
  for (float& value : values) value = normal(random);
  return values;
}

// Scales of 16 bits, ue6m10, and the floats they stand for: zeros, neighbours and any.
struct CodedScales {
  std::vector<uint16_t> codes;
  Floats floats;

  CodedScales(size_t n, Random& random) {
    for (size_t i = 0; i < n; ++i) {
      const uint32_t code = random() % 9 == 0 ? 0 : random() % 9 == 0 ? random() % 65536 : 45 * 1024 + random() % 4096;
      codes.push_back(static_cast<uint16_t>(code));
      const float mantissa = 1.0f + static_cast<float>(code % 1024) / 1024.0f;
      floats.push_back(code == 0 ? 0.0f : std::ldexp(mantissa, static_cast<int>(code / 1024) - 47));
    }
  }

  StoredScales stored() const { return {codes.data(), TINYQMOE_SCALES_UE6M10}; }
};

// The formulas of tinyqmoe.h, one element at a time.
struct Expected {
  std::vector<int> quantized;
  Floats x_scales;
  Floats x16;
  Floats f32;
};

void quantize_token(const float* x, uint32_t cols, Expected* expected) {
  float largest = 0.0f;
  for (uint32_t i = 0; i < cols; ++i) largest = std::max(largest, std::fabs(x[i]));
  const bool zero = largest < std::ldexp(1.0f, -100);
  expected->x_scales.push_back(zero ? 0.0f : largest / 32512.0f);
  const float factor = zero ? 0.0f : 32512.0f / largest;
  for (uint32_t i = 0; i < cols; ++i) {
    const float product = x[i] * factor;
    expected->quantized.push_back(static_cast<int>(std::nearbyint(product)));
  }
}

float dot_x16(const Spec& spec, const int8_t* w, const int* q, float x_scale, const float* scales, uint32_t size) {
  float sum = 0.0f;
  for (uint32_t begin = 0, g = 0; begin < spec.cols; begin += size, ++g) {
    int64_t acc = 0;
    for (uint32_t i = begin; i < std::min(spec.cols, begin + size); ++i) acc += int64_t{w[i]} * q[i];
    if (size >= spec.cols) return static_cast<float>(acc) * (x_scale * scales[0]);
    const float term = static_cast<float>(acc) * scales[g];
    sum = sum + term;
  }
  return x_scale * sum;
}

float dot_f32(const Spec& spec, const int8_t* w, const float* x, const float* scales, uint32_t size) {
  float sum = 0.0f;
  for (uint32_t begin = 0, g = 0; begin < spec.cols; begin += size, ++g) {
    volatile float p[8] = {};  // volatile: no contraction, no other order
    for (uint32_t i = begin; i < std::min(spec.cols, begin + size); ++i) {
      volatile float term = static_cast<float>(w[i]) * x[i];
      p[(i - begin) % 8] = p[(i - begin) % 8] + term;
    }
    const float s = ((p[0] + p[4]) + (p[2] + p[6])) + ((p[1] + p[5]) + (p[3] + p[7]));
    volatile float term = s * scales[g];
    sum = sum + term;
  }
  return sum;
}

Expected expect(const Spec& spec, const Levels& levels, const Floats& x, const Floats& scales, uint32_t group_size,
                uint32_t n_tokens) {
  Expected expected;
  const uint32_t size = std::min(group_size, spec.cols);
  const uint32_t groups = (spec.cols + size - 1) / size;
  for (uint32_t t = 0; t < n_tokens; ++t) {
    quantize_token(x.data() + size_t{t} * spec.cols, spec.cols, &expected);
    for (uint32_t r = 0; r < spec.rows; ++r) {
      const int8_t* w = levels.data() + size_t{r} * spec.cols;
      const float* row_scales = scales.data() + size_t{r} * groups;
      const int* q = expected.quantized.data() + size_t{t} * spec.cols;
      expected.x16.push_back(dot_x16(spec, w, q, expected.x_scales[t], row_scales, size));
      expected.f32.push_back(dot_f32(spec, w, x.data() + size_t{t} * spec.cols, row_scales, size));
    }
  }
  return expected;
}

// Products with scales of either type for groups of this size, of so many tokens each.
void test_group_size(const Spec& spec, const tinyqmoe_tensor* tensor, const Levels& levels, uint32_t group_size,
                     std::initializer_list<uint32_t> numbers_of_tokens, Random& random) {
  const uint32_t size = std::min(group_size, spec.cols);
  const size_t n_scales = size_t{spec.rows} * ((spec.cols + size - 1) / size);
  const Floats scales = random_floats(n_scales, 0.1f, random);
  const CodedScales coded(n_scales, random);
  for (const uint32_t n_tokens : numbers_of_tokens) {
    Floats x = random_floats(size_t{n_tokens} * spec.cols, 3.0f, random);
    if (n_tokens == 3) std::fill(x.begin(), x.begin() + spec.cols, 0.0f);
    const Expected expected = expect(spec, levels, x, scales, group_size, n_tokens);
    const Expected of_codes = expect(spec, levels, x, coded.floats, group_size, n_tokens);
    for (const tinyqmoe_isa isa : available_isas()) {
      g_context = spec.name() + " group " + std::to_string(group_size) + " tokens " + std::to_string(n_tokens) +
                  " isa " + std::to_string(isa);
      const Product x16 = linear_x16(tensor, x, scales, group_size, n_tokens, isa);
      CHECK(x16.status == TINYQMOE_OK && crc32_of(x16.y) == crc32_of(expected.x16));
      const Product f32 = linear_f32(tensor, x, scales, group_size, n_tokens, isa);
      CHECK(f32.status == TINYQMOE_OK && crc32_of(f32.y) == crc32_of(expected.f32));
      const Product by_codes = linear_x16(tensor, x, coded.stored(), group_size, n_tokens, isa);
      CHECK(by_codes.status == TINYQMOE_OK && crc32_of(by_codes.y) == crc32_of(of_codes.x16));
    }
  }
}

void test_products(const Spec& spec, const tinyqmoe_tensor* tensor, const Levels& levels, Random& random) {
  for (const uint32_t group_size : {0xFFFFFFFFu, 256u, 128u, 64u, 32u, 43u, 7u}) {
    test_group_size(spec, tensor, levels, group_size, {1, 3, 17}, random);
  }
}

// Groups that do not fill the strips of a batch, in several strips of which the last is short.
void test_strips(Random& random) {
  const Spec specs[] = {{0, 2, 0, -1, 3, 21, 1189}, {0, 8, 0, -128, 256, 6, 2080}};
  for (const Spec& spec : specs) {
    const Levels levels = random_levels(spec, random);
    const Bytes blob = make_blob(spec, levels, random);
    Tensor tensor;
    CHECK(open(blob, TINYQMOE_VERIFY_PAYLOAD, &tensor) == TINYQMOE_OK);
    for (const uint32_t group_size : {96u, 128u, 224u}) {
      test_group_size(spec, tensor.get(), levels, group_size, {1, 2, 5}, random);
    }
  }
}

// More groups than kernels add up at once, and an odd number of them: half a packed block each, or whole ones.
void test_many_groups(Random& random) {
  const Spec specs[] = {{0, 4, 0, -8, 16, 6, 32 * 129}, {0, 2, 0, -1, 3, 6, 128 * 129},
                        {0, 8, 0, -4, 9, 6, 32 * 129},  {0, 8, 0, -128, 256, 6, 32 * 129}};
  for (const Spec& spec : specs) {
    const Levels levels = random_levels(spec, random);
    const Bytes blob = make_blob(spec, levels, random);
    Tensor tensor;
    CHECK(open(blob, TINYQMOE_VERIFY_PAYLOAD, &tensor) == TINYQMOE_OK);
    test_group_size(spec, tensor.get(), levels, spec.cols / 129, {1}, random);
    if (spec.code_bits == 2) test_group_size(spec, tensor.get(), levels, spec.cols / 258, {1}, random);
  }
}

// The largest sums there are: every level and every activation, or one of its planes, at an end of its range.
void test_extremes(const Spec& spec) {
  Random random(99);
  for (const bool low : {false, true}) {
    const int level = low ? spec.level_min : spec.level_min + static_cast<int>(spec.n_levels) - 1;
    const Levels levels(size_t{spec.rows} * spec.cols, static_cast<int8_t>(level));
    const Bytes blob = make_blob(spec, levels, random);
    Tensor tensor;
    CHECK(open(blob, TINYQMOE_VERIFY_PAYLOAD, &tensor) == TINYQMOE_OK);
    const Floats scales(spec.rows * ((spec.cols + 31) / 32), 1.0f);
    for (const float q : {32512.0f, -32512.0f, 32384.0f, -32384.0f}) {
      Floats x(size_t{2} * spec.cols, q);      // planes 127 and 0, -127 and 0, 127 and -128, -126 and -128
      x[0] = x[spec.cols] = 32512.0f;          // so that the scale is 1
      for (const uint32_t group_size : {spec.cols, 256u, 128u, 64u, 32u}) {
        const Expected expected = expect(spec, levels, x, scales, group_size, 2);
        for (const tinyqmoe_isa isa : available_isas()) {
          g_context = spec.name() + " extreme group " + std::to_string(group_size) + " isa " + std::to_string(isa);
          CHECK(crc32_of(linear_x16(tensor.get(), x, scales, group_size, 2, isa).y) == crc32_of(expected.x16));
          const Floats one(x.begin(), x.begin() + spec.cols);
          const Floats y(expected.x16.begin(), expected.x16.begin() + spec.rows);
          CHECK(crc32_of(linear_x16(tensor.get(), one, scales, group_size, 1, isa).y) == crc32_of(y));
        }
      }
    }
  }
}

void test_rows(const Spec& spec, const tinyqmoe_tensor* tensor, const Levels& levels, Random& random) {
  for (const tinyqmoe_isa isa : available_isas()) {
    g_context = spec.name() + " isa " + std::to_string(isa);
    Levels decoded(levels.size());
    CHECK(tinyqmoe_decode_rows(tensor, 0, spec.rows, isa, decoded.data()) == TINYQMOE_OK);
    CHECK(decoded == levels);
    const uint32_t begin = static_cast<uint32_t>(random() % spec.rows);
    const uint32_t end = begin + static_cast<uint32_t>(random() % (spec.rows - begin)) + 1;
    Levels part(size_t{end - begin} * spec.cols);
    CHECK(tinyqmoe_decode_rows(tensor, begin, end, isa, part.data()) == TINYQMOE_OK);
    CHECK(std::memcmp(part.data(), levels.data() + size_t{begin} * spec.cols, part.size()) == 0);
    const uint32_t groups = (spec.cols + 42) / 43;
    const Floats scales = random_floats(size_t{spec.rows} * groups, 1.0f, random);
    const std::vector<int64_t> ids = {end - 1, begin, 0, spec.rows - 1, begin};
    Floats out(ids.size() * spec.cols);
    const tinyqmoe_embedding_args args = {tensor, scales.data(), TINYQMOE_SCALES_FLOAT32, 43, isa,
                                          ids.data(), ids.size(), out.data()};
    CHECK(tinyqmoe_embedding(&args) == TINYQMOE_OK);
    Floats expected;
    for (const int64_t id : ids) {
      for (uint32_t c = 0; c < spec.cols; ++c) {
        expected.push_back(static_cast<float>(levels[size_t(id) * spec.cols + c]) * scales[size_t(id) * groups + c / 43]);
      }
    }
    CHECK(crc32_of(out) == crc32_of(expected));
  }
}

void test_quantize(Random& random) {
  for (const uint32_t cols : {1u, 7u, 43u, 172u, 2048u, 4096u}) {
    for (const float scale : {1e-38f, 1e-30f, 1.0f, 1e38f}) {
      g_context = "quantize " + std::to_string(cols) + " " + std::to_string(scale);
      Floats x = random_floats(cols, scale, random);
      for (float& value : x) value = std::isfinite(value) ? value : scale;
      // Halves, to see ties: 32512 and k + 0.5 in units of the scale.
      for (uint32_t i = 0; scale == 1.0f && i < cols; ++i) x[i] = static_cast<float>(i * 37 % 32512) + 0.5f;
      if (scale == 1.0f) x[0] = -32512.0f;
      Expected expected;
      quantize_token(x.data(), cols, &expected);
      for (const tinyqmoe_isa isa : available_isas()) {
        const Quantized quantized(cols, 1);
        std::memset(quantized.bytes(), 77, tinyqmoe_quantized_bytes(cols));
        float x_scale = -1.0f;
        CHECK(tinyqmoe_quantize_x16(x.data(), 1, cols, isa, quantized.bytes(), &x_scale) == TINYQMOE_OK);
        CHECK(std::memcmp(&x_scale, &expected.x_scales[0], 4) == 0);
        const tinyqmoe::X16 q = tinyqmoe::x16_at(quantized.bytes(), cols, 0);
        for (uint32_t i = 0; i < tinyqmoe::padded_cols(cols); ++i) {
          CHECK(q.whole[i] == (i < cols ? expected.quantized[i] : 0));
          CHECK(256 * q.high[i] + q.low[i] == q.whole[i] && q.high[i] >= -127);
        }
        for (const float bad : {NAN, -NAN, INFINITY, -INFINITY}) {
          Floats broken = x;
          broken[random() % cols] = bad;
          CHECK(tinyqmoe_quantize_x16(broken.data(), 1, cols, isa, quantized.bytes(), &x_scale) == TINYQMOE_NON_FINITE);
        }
      }
    }
  }
}

// For speed: the same column of both planes, in the lower bits of its addresses.
void test_planes_lie_apart() {
  const Quantized memory(65535, 2);
  const auto at = [](const void* p) { return reinterpret_cast<uintptr_t>(p); };
  for (uint32_t cols = 1; cols < 65535; ++cols) {
    g_context = "planes of " + std::to_string(cols);
    const tinyqmoe::X16 x = tinyqmoe::x16_at(memory.bytes(), cols, 0);
    const tinyqmoe::X16 next = tinyqmoe::x16_at(memory.bytes(), cols, 1);
    CHECK(cols < 512 || (at(x.low) - at(x.high)) % 4096 >= 512);
    CHECK(at(x.low) - at(x.high) >= cols && at(next.whole) - at(x.low) >= cols && at(next.whole) % 64 == 0);
  }
}

// Copies in clipped levels: no exceptions, few, a row of nothing else, and some at the ends of rows.
void test_clipped_copies(tinyqmoe::Form form, Random& random) {
  const Spec specs[] = {
      {0, 8, 0, -127, 255, 33, 43}, {0, 8, 0, -128, 256, 9, 2048}, {0, 8, 0, -40, 81, 17, 640},
      {0, 8, 0, 3, 80, 20, 65},     {0, 8, 0, -90, 70, 16, 1},     {0, 8, 0, -127, 255, 19, 3001},
  };
  for (const Spec& spec : specs) {
    const uint32_t blocks_of_row = (spec.cols + tinyqmoe::kExceptions - 1) / tinyqmoe::kExceptions;
    const uint32_t room = std::max(spec.rows, spec.rows * spec.cols / tinyqmoe::kWeightsPerBlock);
    const int8_t most = static_cast<int8_t>(spec.level_min + static_cast<int>(spec.n_levels) - 1);
    for (int kind = 0; kind < 4; ++kind) {
      g_context = spec.name() + " in clipped levels, kind " + std::to_string(kind);
      Levels levels = levels_with_exceptions(spec, tinyqmoe::clipped_bits(form), kind == 1 ? 90 : 0, random);
      if (kind == 2 && blocks_of_row <= room) std::fill_n(levels.begin() + spec.cols, spec.cols, most);
      for (uint32_t r = 0; kind == 3 && r < spec.rows; r += 2) {
        levels[size_t{r} * spec.cols] = levels[size_t{r + 1} * spec.cols - 1] = static_cast<int8_t>(spec.level_min);
      }
      const Bytes blob = make_blob(spec, levels, random);
      Tensor coded;
      CHECK(open(blob, 0, &coded) == TINYQMOE_OK);
      const Bytes bytes = clipped_copy(coded.get(), form);
      tinyqmoe_tensor* copy = nullptr;
      CHECK(tinyqmoe::open_copy(bytes.data(), bytes.size(), 0, &copy) == TINYQMOE_OK);
      const Tensor tensor(copy);
      test_rows(spec, copy, levels, random);
      test_products(spec, copy, levels, random);
    }
  }
}

}  // namespace

void test_random() {
  Random random(1);
  for (const Spec& spec : kSpecs) {
    g_context = spec.name();
    const Levels levels = random_levels(spec, random);
    const Bytes blob = make_blob(spec, levels, random);
    Tensor tensor;
    CHECK(open(blob, TINYQMOE_VERIFY_PAYLOAD, &tensor) == TINYQMOE_OK);
    if (tensor == nullptr) continue;
    test_rows(spec, tensor.get(), levels, random);
    test_products(spec, tensor.get(), levels, random);
  }
  for (const Spec& spec : kSpecs) test_extremes(spec);
  test_extremes({0, 8, 0, -127, 255, 1, 65535});
  test_extremes({1, 12, 14, -1, 3, 1, 65535});
  test_extremes({2, 8, 5, -1, 3, 1, 65535});
  test_extremes({0, 2, 0, -2, 4, 1, 65535});
  test_extremes({0, 8, 0, -128, 256, 1, 65535});
  test_extremes({1, 12, 3, -64, 128, 1, 65535, 5});
  for (const tinyqmoe::Form form : kClippedForms) test_clipped_copies(form, random);
  test_strips(random);
  test_many_groups(random);
  test_quantize(random);
  test_planes_lie_apart();
}

}  // namespace tests
