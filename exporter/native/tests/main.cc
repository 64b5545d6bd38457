// tinyqmoe_tests GOLDEN_FOLDER, or tinyqmoe_tests --threads: exit status 0 when every check holds.
#include <cstdio>
#include <exception>

#include "check.h"
#include "support.h"
#include "tests.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::printf("usage: %s tests/golden | --threads\n", argv[0]);
    return 2;
  }
  try {
    const bool threads_only = std::string(argv[1]) == "--threads";
    if (!threads_only) {
      tests::test_calls();
      tests::test_golden(argv[1]);
      tests::test_random();
      tests::test_clipped();
      tests::test_hostile();
      tests::test_sha256();
    }
#if !defined(__wasm__)  // where there are no threads, and no files to map
    if (threads_only) {
      tests::test_residency_of_threads();
    } else {
      tests::test_residency();
    }
    tests::test_expansion();
#endif
  } catch (const std::exception& error) {
    std::printf("%s: %s\n", tests::g_context.c_str(), error.what());
    return 1;
  }
  std::printf("%d checks, %d failures, instruction sets:", tests::g_checks, tests::g_failures);
  for (const tinyqmoe_isa isa : tests::available_isas()) std::printf(" %d", isa);
  std::printf("\n");
  return tests::g_failures == 0 ? 0 : 1;
}
