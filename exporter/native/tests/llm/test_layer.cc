// Norms, rope, SwiGLU and sums: every instruction set against the definition, and the definition against libm.
#include <cmath>
#include <limits>

#include "reference.h"
#include "support.h"

namespace tests {
namespace {

void test_rms_norm(Random& random) {
  Random calls(12);  // apart, so that the cases do not depend on how many instruction sets there are
  for (int i = 0; i < 60; ++i) {
    const uint32_t rows = between(random, 1, 4), cols = i < 40 ? i + 1 : between(random, 1, 3000);
    const float eps = i % 2 == 0 ? 1e-5f : 1e-6f;
    const Floats x = random_floats(random, size_t{rows} * cols, i % 7 == 0 ? 1e-3f : 3.0f);
    const Floats weight = random_floats(random, cols);
    Floats expected;
    for (uint32_t r = 0; r < rows; ++r) {
      const Floats y = reference::rms_norm({x.begin() + r * cols, x.begin() + (r + 1) * cols}, weight, eps);
      expected.insert(expected.end(), y.begin(), y.end());
    }
    digest(expected);
    g_context = "rms_norm of " + std::to_string(cols);
    for (const tinyqmoe_isa isa : llm_isas()) {
      Floats y = x;  // in place, and in two calls
      const tinyqmoe_rms_norm_args args = {y.data(), weight.data(), y.data(), cols, eps};
      const uint32_t middle = below(calls, rows + 1);
      CHECK(tinyqmoe_rms_norm(&args, middle, rows, isa) == TINYQMOE_OK);
      CHECK(tinyqmoe_rms_norm(&args, 0, middle, isa) == TINYQMOE_OK);
      CHECK(same_bits(y, expected));
    }
  }
}

void test_swiglu(Random& random) {
  Random calls(13);
  for (int i = 0; i < 60; ++i) {
    const size_t n = i < 40 ? i + 1 : between(random, 1, 5000);
    const Floats gate = random_floats(random, n, i % 3 == 0 ? 100.0f : 8.0f);
    const Floats up = random_floats(random, n);
    const Floats expected = reference::swiglu(gate, up);
    digest(expected);
    g_context = "swiglu of " + std::to_string(n);
    for (const tinyqmoe_isa isa : llm_isas()) {
      Floats y = gate;
      const size_t middle = below(calls, static_cast<uint32_t>(n) + 1);
      CHECK(tinyqmoe_swiglu(y.data() + middle, up.data() + middle, n - middle, isa) == TINYQMOE_OK);
      CHECK(tinyqmoe_swiglu(y.data(), up.data(), middle, isa) == TINYQMOE_OK);
      CHECK(same_bits(y, expected));
    }
  }
}

// With a gate of -x and an up of 1 the exponential is within the rounding of what SwiGLU gives.
void test_exponential_is_one() {
  g_context = "exp";
  double worst = 0.0;
  for (float x = -64.0f; x < 88.0f; x += 0.00731f) {
    const double exact = std::exp(static_cast<double>(x));
    worst = std::max(worst, std::fabs(reference::exponential(x) - exact) / exact);
  }
  CHECK(worst < 1.5e-7);  // 0.000000119 is a unit in the last place of 1
  CHECK(reference::exponential(0.0f) == 1.0f && reference::exponential(-64.5f) == 0.0f);
  CHECK(std::isfinite(reference::exponential(1e30f)));
}

void test_angles(Random& random) {
  g_context = "angles";
  Floats frequencies = {1.0f, 0.75f, 0.5f, 0.1f, 1e-4f, 1e-7f, 0.0f};
  for (int i = 0; i < 57; ++i) frequencies.push_back(static_cast<float>(random()) * 0x1p-32f);
  const uint32_t pairs = static_cast<uint32_t>(frequencies.size()), tokens = 40;
  for (const uint32_t position : {0u, 1u, 100u, 4096u, 131072u, (1u << 20) - tokens}) {
    Floats cosines(tokens * pairs), sines(tokens * pairs);
    CHECK(tinyqmoe_rope_angles(frequencies.data(), pairs, position, tokens, cosines.data(), sines.data()) == TINYQMOE_OK);
    for (uint32_t t = 0; t < tokens; ++t) {
      for (uint32_t i = 0; i < pairs; ++i) {
        const double angle = static_cast<float>(position + t) * frequencies[i];
        // Half a unit of a float is the rounding; what the double adds does not show.
        CHECK(std::fabs(cosines[t * pairs + i] - std::cos(angle)) <= 0x1.0001p-25);
        CHECK(std::fabs(sines[t * pairs + i] - std::sin(angle)) <= 0x1.0001p-25);
      }
    }
    digest(cosines);
    digest(sines);
    Floats again(pairs), other(pairs);
    CHECK(tinyqmoe_rope_angles(frequencies.data(), pairs, position + 7, 1, again.data(), other.data()) == TINYQMOE_OK);
    CHECK(same_bits(again, {cosines.begin() + 7 * pairs, cosines.begin() + 8 * pairs}));
  }
  float c, s;
  for (const float bad : {1.5f, -1e-3f, std::numeric_limits<float>::quiet_NaN()}) {
    CHECK(tinyqmoe_rope_angles(&bad, 1, (1u << 20) - 1, 1, &c, &s) == TINYQMOE_BAD_ARGUMENT);
  }
}

void test_rope(Random& random) {
  for (int i = 0; i < 40; ++i) {
    const uint32_t tokens = between(random, 1, 4), heads = between(random, 1, 5), half = between(random, 1, 70);
    const Floats x = random_floats(random, size_t{tokens} * heads * half * 2);
    const Floats cosines = random_floats(random, size_t{tokens} * half), sines = random_floats(random, cosines.size());
    Floats expected = x, y = x;
    for (uint32_t t = 0; t < tokens; ++t) {
      for (uint32_t h = 0; h < heads; ++h) {
        for (uint32_t k = 0; k < half; ++k) {
          const size_t a = ((size_t{t} * heads + h) * 2) * half + k, b = a + half;
          const float c = cosines[t * half + k], s = sines[t * half + k];
          expected[a] = x[a] * c - x[b] * s;
          expected[b] = x[b] * c + x[a] * s;
        }
      }
    }
    g_context = "rope of " + std::to_string(half);
    const tinyqmoe_rope_args args = {y.data(), cosines.data(), sines.data(), heads, half * 2};
    const uint32_t middle = below(random, tokens + 1);
    CHECK(tinyqmoe_rope(&args, middle, tokens) == TINYQMOE_OK && tinyqmoe_rope(&args, 0, middle) == TINYQMOE_OK);
    CHECK(same_bits(y, expected));
    digest(y);
  }
}

void test_sums(Random& random) {
  g_context = "sums";
  const uint32_t tokens = 3, cols = 37;
  const Floats x = random_floats(random, tokens * cols), y = random_floats(random, x.size());
  Floats sum = x, biased = x;
  CHECK(tinyqmoe_add(sum.data(), y.data(), sum.size()) == TINYQMOE_OK);
  CHECK(tinyqmoe_add_bias(biased.data(), y.data(), tokens, cols) == TINYQMOE_OK);
  for (uint32_t i = 0; i < x.size(); ++i) CHECK(sum[i] == x[i] + y[i] && biased[i] == x[i] + y[i % cols]);
}

void test_bad_arguments() {
  g_context = "bad arguments";
  float x = 1.0f;
  const tinyqmoe_rms_norm_args norm = {&x, &x, &x, 1, 0.0f}, no_cols = {&x, &x, &x, 0, 0.0f}, null = {&x, nullptr, &x, 1, 0.0f};
  CHECK(tinyqmoe_rms_norm(nullptr, 0, 1, TINYQMOE_ISA_AUTO) == TINYQMOE_BAD_ARGUMENT);
  CHECK(tinyqmoe_rms_norm(&no_cols, 0, 1, TINYQMOE_ISA_AUTO) == TINYQMOE_BAD_ARGUMENT);
  CHECK(tinyqmoe_rms_norm(&null, 0, 1, TINYQMOE_ISA_AUTO) == TINYQMOE_BAD_ARGUMENT);
  CHECK(tinyqmoe_rms_norm(&norm, 2, 1, TINYQMOE_ISA_AUTO) == TINYQMOE_BAD_ARGUMENT);
  CHECK(tinyqmoe_rms_norm(&norm, 0, 1, static_cast<tinyqmoe_isa>(7)) == TINYQMOE_NO_ISA);
  CHECK(tinyqmoe_swiglu(&x, nullptr, 1, TINYQMOE_ISA_AUTO) == TINYQMOE_BAD_ARGUMENT);
  CHECK(tinyqmoe_swiglu(nullptr, nullptr, 0, TINYQMOE_ISA_AUTO) == TINYQMOE_OK);
  const tinyqmoe_rope_args odd = {&x, &x, &x, 1, 1};
  CHECK(tinyqmoe_rope(&odd, 0, 1) == TINYQMOE_BAD_ARGUMENT);
  CHECK(tinyqmoe_add(&x, nullptr, 1) == TINYQMOE_BAD_ARGUMENT);
  CHECK(tinyqmoe_add_bias(nullptr, &x, 1, 1) == TINYQMOE_BAD_ARGUMENT);
}

}  // namespace

void test_layer() {
  Random random(2);
  test_rms_norm(random);
  test_swiglu(random);
  test_exponential_is_one();
  test_angles(random);
  test_rope(random);
  test_sums(random);
  test_bad_arguments();
}

}  // namespace tests
