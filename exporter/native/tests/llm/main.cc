// llm_tests, or llm_tests BUNDLE...: the parts, or sessions over bundles. Exit status 0 when every check holds.
// Prints a digest of all results, which must be equal on all machines.
#include <cstdio>

#include "support.h"

namespace tests {
namespace {

uint32_t g_digest = 0;

}  // namespace

std::vector<tinyqmoe_isa> llm_isas() {
  std::vector<tinyqmoe_isa> found;
  for (const tinyqmoe_isa isa : {TINYQMOE_ISA_SCALAR, TINYQMOE_ISA_AVX2, TINYQMOE_ISA_NEON, TINYQMOE_ISA_AVX512,
                                 TINYQMOE_ISA_SIMD128}) {
    float x = 1.0f;
    if (tinyqmoe_swiglu(&x, &x, 1, isa) == TINYQMOE_OK) found.push_back(isa);
  }
  return found;
}

void digest(const Floats& values) { g_digest = tinyqmoe_crc32(g_digest, values.data(), values.size() * sizeof(float)); }
uint32_t current_digest() { return g_digest; }

}  // namespace tests

int main(int argc, char** argv) {
  if (argc == 1) {
    tests::test_half();
    tests::test_layer();
    tests::test_attention();
    tests::test_json();
    tests::test_pool();
  }
  for (int i = 1; i < argc; ++i) tests::test_session(argv[i]);
  std::printf("%d checks, %d failures, digest %08x, instruction sets:", tests::g_checks, tests::g_failures,
              tests::current_digest());
  for (const tinyqmoe_isa isa : tests::llm_isas()) std::printf(" %d", isa);
  std::printf("\n");
  return tests::g_failures == 0 ? 0 : 1;
}
