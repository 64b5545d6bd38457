// What the tests of native/llm share.
#ifndef TINYQMOE_TESTS_LLM_SUPPORT_H_
#define TINYQMOE_TESTS_LLM_SUPPORT_H_

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "tinyqmoe/llm.h"

namespace tests {

using Floats = std::vector<float>;
using Random = std::mt19937;

// The same on every machine, which the distributions of the standard library need not be.
inline uint32_t below(Random& random, uint32_t n) { return static_cast<uint32_t>(random() % n); }
inline uint32_t between(Random& random, uint32_t low, uint32_t high) { return low + below(random, high - low + 1); }

// Mostly in (-size, size); now and then an outlier or a zero, as activations have.
inline Floats random_floats(Random& random, size_t n, float size = 1.0f) {
  Floats out(n);
  for (float& x : out) {
    x = (static_cast<float>(random() >> 8) * 0x1p-23f - 1.0f) * size;
    if (below(random, 50) == 0) x *= 30.0f;
    if (below(random, 50) == 0) x = below(random, 2) == 0 ? 0.0f : -0.0f;
  }
  return out;
}

inline bool same_bits(const Floats& a, const Floats& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Instruction sets of llm.h that this machine has.
std::vector<tinyqmoe_isa> llm_isas();

// Joins results to the digest that the program prints, to be compared between machines.
void digest(const Floats& values);
uint32_t current_digest();

void test_half();
void test_layer();
void test_attention();
void test_json();
void test_pool();
void test_session(const std::string& bundle);

}  // namespace tests

#endif  // TINYQMOE_TESTS_LLM_SUPPORT_H_
