// SHA-256: the examples of FIPS 180-4, and the processor's instructions against plain code.
#include <cstring>

#include "check.h"
#include "sha256.h"
#include "support.h"
#include "tests.h"

namespace tests {
namespace {

std::string digest_of(const std::string& text) {
  char digits[tinyqmoe::kSha256HexDigits];
  tinyqmoe::sha256_hex(reinterpret_cast<const uint8_t*>(text.data()), text.size(), digits);
  return {digits, sizeof digits};
}

void test_examples() {
  g_context = "examples";
  CHECK(digest_of("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(digest_of("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(digest_of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  CHECK(digest_of(std::string(1000000, 'a')) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

// The end of a text and its length fill one block or two. The digest of all digests is that of Python's hashlib.
void test_lengths() {
  g_context = "lengths";
  std::string all;
  for (size_t n = 0; n < 200; ++n) all += digest_of(std::string(n, '\0'));
  CHECK(digest_of(all) == "ba0e721dc998238252c8b028f0ce4ea61910d7fcb8252e56492d919297596c14");
}

void test_instructions() {
  g_context = "instructions";
  const tinyqmoe::Sha256Blocks instructions = tinyqmoe::sha256_instructions();
  if (instructions == nullptr) return;
  Random random(3);
  for (uint64_t n_blocks = 0; n_blocks < 20; ++n_blocks) {
    Bytes blocks(64 * n_blocks + 1);
    for (uint8_t& byte : blocks) byte = static_cast<uint8_t>(random());
    uint32_t expected[8], state[8];
    for (uint32_t i = 0; i < 8; ++i) expected[i] = state[i] = static_cast<uint32_t>(random());
    tinyqmoe::sha256_blocks(blocks.data() + 1, n_blocks, expected);  // not aligned
    instructions(blocks.data() + 1, n_blocks, state);
    CHECK(std::memcmp(state, expected, sizeof state) == 0);
  }
}

}  // namespace

void test_sha256() {
  test_examples();
  test_lengths();
  test_instructions();
}

}  // namespace tests
