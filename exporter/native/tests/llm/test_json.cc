// The reader of manifests: what it takes, what it refuses, and the exactness of numbers.
#include <cstdlib>

#include "json.h"
#include "support.h"

namespace tests {
namespace {

using tinyqmoe::Json;

bool parses(const std::string& text) {
  Json json;
  std::string error;
  return Json::parse(text, &json, &error);
}

void test_grammar() {
  for (const char* good : {"{}", "[]", " [1, -2.5e+3 ,\"x\"]\n", "{\"a\":{\"b\":[true,false,null]}}", "\"\\u00e9\\ud83d\\ude00\\n\"",
                           "0", "-0", "1E5", "\"\""}) {
    g_context = good;
    CHECK(parses(good));
  }
  for (const char* bad : {"", "{", "[1,]", "{\"a\":1,}", "{\"a\" 1}", "{a:1}", "01", "1.", ".5", "+1", "1e", "\"\\x\"", "\"\n\"",
                          "\"\\ud800\"", "\"\\ude00\"", "tru", "[1] 2", "{\"a\":1,\"a\":2}", "\"open", "nan", "[1 2]", "\"\\u00g0\""}) {
    g_context = bad;
    CHECK(!parses(bad));
  }
  g_context = "depth";
  CHECK(parses(std::string(64, '[') + std::string(64, ']')));
  CHECK(!parses(std::string(65, '[') + std::string(65, ']')));
  CHECK(!parses(std::string(100000, '[')));
  CHECK(!parses(std::string("[1\0]", 4)));
}

void test_values() {
  g_context = "values";
  const std::string text = "{\"a\": {\"n\": 9007199254740992, \"s\": \"\\u00e9\\ud83d\\ude00\"}, \"list\": [7, \"x\"]}";
  Json json;
  std::string error, string;
  uint64_t number = 0;
  CHECK(Json::parse(text, &json, &error));
  CHECK(json.find("a")->find("n")->get(&number) && number == uint64_t{1} << 53);
  CHECK(json.find("a")->find("s")->get(&string) && string == "\xC3\xA9\xF0\x9F\x98\x80");
  CHECK(json.find("list")->items().size() == 2 && json.find("list")->items()[0].get(&number) && number == 7);
  CHECK(json.find("b") == nullptr && json.find("list")->find("x") == nullptr);
  for (const char* bad : {"-1", "1.0", "1e2", "9007199254740993", "99999999999999999999999", "\"1\"", "null"}) {
    CHECK(Json::parse(bad, &json, &error) && !json.get(&number));
  }
}

void test_doubles() {
  Json json;
  std::string error;
  for (const char* text : {"1e-05", "1e-06", "1e-5", "0.00001", "123.456", "-2.5E3", "1e22", "0", "999999999999999"}) {
    double value = -1.0;
    g_context = text;
    CHECK(Json::parse(text, &json, &error) && json.get(&value) && value == std::strtod(text, nullptr));
  }
  for (const char* text : {"9.999999747378752e-06", "1e23", "1e-23", "1e999999999999", "true", "\"1\""}) {
    double value;
    g_context = text;
    CHECK(Json::parse(text, &json, &error) && !json.get(&value));
  }
}

// So many members that comparing each with all others would take minutes.
void test_many_members() {
  g_context = "many members";
  std::string text = "{";
  for (int i = 0; i < 300000; ++i) text += "\"" + std::to_string(i) + "\":" + std::to_string(i) + ",";
  Json json;
  std::string error;
  uint64_t number = 0;
  const std::string whole = text + "\"x\":0}";  // numbers are read where they stand in it
  CHECK(Json::parse(whole, &json, &error));
  CHECK(json.find("299999")->get(&number) && number == 299999);
  CHECK(!parses(text + "\"77\":0}"));
}

// Cut and changed documents: nothing may be read outside them.
void test_damage(Random& random) {
  g_context = "damage";
  const std::string text = "{\"places\": {\"a\\u0041\": [1.5e-3, {\"x\": null}], \"b\": \"\\ud83d\\ude00\"}, \"n\": [true, 12]}";
  for (size_t n = 0; n < text.size(); ++n) CHECK(!parses(text.substr(0, n)));
  for (int i = 0; i < 20000; ++i) {
    std::string damaged = text;
    for (uint32_t k = 0; k < 1 + below(random, 3); ++k) {
      damaged[below(random, static_cast<uint32_t>(text.size()))] = "\"\\{}[],:0e-u\0x"[below(random, 14)];
    }
    parses(damaged);
  }
}

}  // namespace

void test_json() {
  Random random(4);
  test_grammar();
  test_values();
  test_doubles();
  test_many_members();
  test_damage(random);
}

}  // namespace tests
