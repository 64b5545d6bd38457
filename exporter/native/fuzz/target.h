// What the fuzz targets share. Each is a program with libFuzzer, or with replay.cc, which needs nothing.
#ifndef TINYQMOE_FUZZ_TARGET_H_
#define TINYQMOE_FUZZ_TARGET_H_

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace tests {

// Ends the program where a property does not hold; `what` says which.
inline void expect(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "%s\n", what);
  std::abort();
}

// Number of inputs that a target took for good ones, of which replay.cc tells.
inline size_t& accepted() {
  static size_t n = 0;
  return n;
}

}  // namespace tests

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

#endif  // TINYQMOE_FUZZ_TARGET_H_
