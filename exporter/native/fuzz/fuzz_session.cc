// Opens a session with arbitrary bytes for manifest.json, and feeds it two tokens: it is refused with a sentence, or
// computes.
//
// The environment variable TINYQMOE_FUZZ_BUNDLE names a folder with the weights of a bundle; manifest.json is written
// there. Seed: the manifest of that bundle.
#include <cstring>
#include <fstream>
#include <string>

#include "target.h"
#include "tinyqmoe/session.h"

namespace {

using tests::expect;

const std::string& folder() {
  static const char* const given = std::getenv("TINYQMOE_FUZZ_BUNDLE");
  expect(given != nullptr, "TINYQMOE_FUZZ_BUNDLE is not set");
  static const std::string name = given;
  return name;
}

void write_manifest(const uint8_t* data, size_t size) {
  std::ofstream file(folder() + "/manifest.json", std::ios::binary | std::ios::trunc);
  file.write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
  expect(file.good(), "the manifest cannot be written");
}

// Whether a session opens. With `verify` it computes nothing: it is only seen whether that refuses.
bool try_session(bool verify) {
  tinyqmoe_session_options options = {};
  options.struct_bytes = sizeof options;
  options.bundle = folder().c_str();
  options.n_threads = 1;
  options.batch_tokens = 2;
  options.verify = verify;
  tinyqmoe_session* session = nullptr;
  char error[256] = "";
  const tinyqmoe_status status = tinyqmoe_session_open(&options, &session, error, sizeof error);
  expect((status == TINYQMOE_OK) == (session != nullptr), "status and session disagree");
  expect((status == TINYQMOE_OK) == (error[0] == '\0'), "an error has no words, or a success has some");
  const int32_t tokens[2] = {0, 1};
  if (session != nullptr && !verify) tinyqmoe_session_feed(session, tokens, 2, nullptr);
  tinyqmoe_session_close(session);
  return session != nullptr;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  write_manifest(data, size);
  const bool opened = try_session(false), verified = try_session(true);
  expect(opened || !verified, "it opens with digests only");
  tests::accepted() += verified;
  return 0;
}
