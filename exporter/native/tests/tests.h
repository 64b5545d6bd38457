#ifndef TINYQMOE_TESTS_TESTS_H_
#define TINYQMOE_TESTS_TESTS_H_

#include <string>

namespace tests {

void test_golden(const std::string& folder);
void test_random();
void test_clipped();
void test_residency();
// Of it, what runs in several threads at once.
void test_residency_of_threads();
void test_expansion();
void test_calls();
void test_hostile();
void test_sha256();

}  // namespace tests

#endif  // TINYQMOE_TESTS_TESTS_H_
