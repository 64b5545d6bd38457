// A strict reader of JSON (RFC 8259) for manifests.
//
// A document is read once into a tree that keeps views of its text, which must outlive it. Names in an object are
// unique.
#ifndef TINYQMOE_LLM_JSON_H_
#define TINYQMOE_LLM_JSON_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tinyqmoe {

class Json {
 public:
  enum class Kind { kNull, kBool, kNumber, kString, kArray, kObject };

  // False, with *error naming the byte, when text is anything but one value. At most 64 levels deep.
  static bool parse(std::string_view text, Json* out, std::string* error);

  Kind kind() const { return kind_; }
  const std::vector<Json>& items() const { return items_; }  // of an array
  const std::vector<std::pair<std::string, Json>>& members() const { return members_; }  // of an object, by name

  // Null when this is no object or has no such member.
  const Json* find(std::string_view name) const;

  // False when this is something else, or no whole number from 0 to 2^53.
  bool get(uint64_t* value) const;
  // False when this is something else, or more precise than 15 digits times a power of ten from -22 to 22, within which
  // one IEEE operation gives the nearest double without a library.
  bool get(double* value) const;
  bool get(std::string* value) const;

 private:
  friend class JsonParser;

  Kind kind_ = Kind::kNull;
  std::string_view number_;
  std::string text_;
  std::vector<Json> items_;
  std::vector<std::pair<std::string, Json>> members_;
};

}  // namespace tinyqmoe
#endif  // TINYQMOE_LLM_JSON_H_
