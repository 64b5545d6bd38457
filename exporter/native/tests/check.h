// The smallest test framework that serves: CHECK counts failures and prints where.
#ifndef TINYQMOE_TESTS_CHECK_H_
#define TINYQMOE_TESTS_CHECK_H_

#include <cstdio>
#include <string>

namespace tests {

inline int g_checks = 0;
inline int g_failures = 0;
inline std::string g_context;  // what is being tested, printed with a failure

inline void check(bool fine, const char* what, const char* file, int line) {
  ++g_checks;
  if (fine) return;
  if (++g_failures <= 50) std::printf("%s:%d: %s: %s\n", file, line, g_context.c_str(), what);
}

}  // namespace tests

#define CHECK(condition) tests::check((condition), #condition, __FILE__, __LINE__)

#endif  // TINYQMOE_TESTS_CHECK_H_
