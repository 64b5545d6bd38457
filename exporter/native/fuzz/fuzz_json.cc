// Parses arbitrary bytes as JSON: what is accepted can be read in every way.
//
// Seeds: manifests.
#include "json.h"
#include "target.h"

namespace {

using tinyqmoe::Json;

void read_all(const Json& value) {
  uint64_t whole = 0;
  double number = 0.0;
  std::string text;
  const bool is_whole = value.get(&whole), is_number = value.get(&number), is_text = value.get(&text);
  tests::expect(!is_text || !(is_whole || is_number), "a text is a number too");
  tests::expect(!is_whole || whole <= uint64_t{1} << 53, "a whole number above 2^53");
  for (const Json& item : value.items()) read_all(item);
  for (const auto& [name, member] : value.members()) {
    tests::expect(value.find(name) == &member, "a name leads to another member");
    read_all(member);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  Json value;
  std::string error;
  const bool parsed = Json::parse(text, &value, &error);
  tests::expect(parsed == error.empty(), "an error has no words, or a success has some");
  if (parsed) read_all(value);
  tests::accepted() += parsed;
  return 0;
}
