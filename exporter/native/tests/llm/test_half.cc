// Half precision: the integer forms against the definition, and against the processor's own.
#include <cmath>

#include "half.h"
#include "support.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tests {
namespace {

using tinyqmoe::bits_of;
using tinyqmoe::float_of;
using tinyqmoe::float_of_half;
using tinyqmoe::half_of;

float value_of(uint32_t half) {
  const int exponent = static_cast<int>(half >> 10 & 31);
  const float fraction = static_cast<float>(half & 1023);
  const float size = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(fraction + 1024.0f, exponent - 25);
  return (half & 0x8000u) != 0 ? -size : size;
}

void test_definition() {
  for (uint32_t half = 0; half < 0x7C00u; ++half) {
    for (const uint32_t sign : {0u, 0x8000u}) {
      const uint16_t h = static_cast<uint16_t>(sign | half);
      CHECK(bits_of(float_of_half(h)) == bits_of(value_of(h)));
      CHECK(half_of(value_of(h)) == h);
    }
    // Half way to the next goes to the even one, and just beside it to the nearer one; 65520 goes to infinity.
    const float next = half == 0x7BFFu ? 65536.0f : value_of(half + 1);
    const float middle = (value_of(half) + next) / 2;
    CHECK(half_of(middle) == half + (half & 1));
    CHECK(half_of(std::nextafter(middle, 0.0f)) == half);
    CHECK(half_of(std::nextafter(middle, 1e30f)) == half + 1);
  }
  CHECK(half_of(INFINITY) == 0x7C00 && half_of(-INFINITY) == 0xFC00 && half_of(1e38f) == 0x7C00);
  CHECK(float_of_half(0x7C00) == INFINITY && std::isnan(float_of_half(half_of(NAN))));
}

#if defined(__x86_64__)
bool has_halves() { return __builtin_cpu_supports("f16c"); }
__attribute__((target("f16c"))) uint16_t own_half(float x) { return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT); }
__attribute__((target("f16c"))) float own_float(uint16_t h) { return _cvtsh_ss(h); }
#elif defined(__aarch64__)
bool has_halves() { return true; }
uint16_t own_half(float x) {
  const __fp16 h = static_cast<__fp16>(x);
  uint16_t bits;
  std::memcpy(&bits, &h, sizeof bits);
  return bits;
}
float own_float(uint16_t bits) {
  __fp16 h;
  std::memcpy(&h, &bits, sizeof h);
  return static_cast<float>(h);
}
#else
bool has_halves() { return false; }
uint16_t own_half(float) { return 0; }
float own_float(uint16_t) { return 0; }
#endif

void test_processor() {
  if (!has_halves()) return;
  for (uint32_t h = 0; h < 65536; ++h) {
    const uint16_t half = static_cast<uint16_t>(h);
    CHECK(bits_of(own_float(half)) == bits_of(float_of_half(half)));
  }
  Random random(1);
  for (int i = 0; i < 1000000; ++i) {
    const float x = float_of(static_cast<uint32_t>(random()));
    CHECK(own_half(x) == half_of(x));
  }
}

}  // namespace

void test_half() {
  g_context = "half";
  test_definition();
  test_processor();
}

}  // namespace tests
