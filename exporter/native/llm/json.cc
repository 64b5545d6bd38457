#include "json.h"

#include <algorithm>

namespace tinyqmoe {
namespace {

constexpr int kMaxDepth = 64;
constexpr uint64_t kExact = uint64_t{1} << 53;

bool is_digit(char c) { return c >= '0' && c <= '9'; }

void append_utf8(uint32_t code, std::string* out) {
  if (code < 0x80) {
    *out += static_cast<char>(code);
    return;
  }
  if (code < 0x800) {
    *out += static_cast<char>(0xC0 | code >> 6);
  } else if (code < 0x10000) {
    *out += static_cast<char>(0xE0 | code >> 12);
    *out += static_cast<char>(0x80 | (code >> 6 & 63));
  } else {
    *out += static_cast<char>(0xF0 | code >> 18);
    *out += static_cast<char>(0x80 | (code >> 12 & 63));
    *out += static_cast<char>(0x80 | (code >> 6 & 63));
  }
  *out += static_cast<char>(0x80 | (code & 63));
}

}  // namespace

class JsonParser {
 public:
  explicit JsonParser(std::string_view text) : text_(text) {}

  size_t position() const { return at_; }
  bool at_end() {
    skip_space();
    return at_ == text_.size();
  }

  bool value(Json* out, int depth) {
    skip_space();
    switch (peek()) {
      case '{': return depth < kMaxDepth && object(out, depth + 1);
      case '[': return depth < kMaxDepth && array(out, depth + 1);
      case '"': out->kind_ = Json::Kind::kString; return string(&out->text_);
      case 't': out->kind_ = Json::Kind::kBool; return word("true");
      case 'f': out->kind_ = Json::Kind::kBool; return word("false");
      case 'n': return word("null");
      default: out->kind_ = Json::Kind::kNumber; return number(&out->number_);
    }
  }

 private:
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  bool take(char c) {
    if (peek() != c || at_ == text_.size()) return false;
    ++at_;
    return true;
  }
  void skip_space() {
    while (peek() == ' ' || peek() == '\n' || peek() == '\r' || peek() == '\t') ++at_;
  }
  bool word(std::string_view expected) {
    if (text_.substr(at_, expected.size()) != expected) return false;
    at_ += expected.size();
    return true;
  }

  bool object(Json* out, int depth) {
    out->kind_ = Json::Kind::kObject;
    take('{');
    skip_space();
    if (take('}')) return true;
    do {
      std::string name;
      skip_space();
      if (!string(&name)) return false;
      skip_space();
      if (!take(':')) return false;
      out->members_.emplace_back(std::move(name), Json());
      if (!value(&out->members_.back().second, depth)) return false;
      skip_space();
    } while (take(','));
    return take('}') && sort_members(out);
  }

  // False if a name is there twice. Sorted, so that a stranger's object of very many members takes no quadratic time.
  static bool sort_members(Json* out) {
    auto& members = out->members_;
    std::sort(members.begin(), members.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    const auto same = [](const auto& a, const auto& b) { return a.first == b.first; };
    return std::adjacent_find(members.begin(), members.end(), same) == members.end();
  }

  bool array(Json* out, int depth) {
    out->kind_ = Json::Kind::kArray;
    take('[');
    skip_space();
    if (take(']')) return true;
    do {
      out->items_.emplace_back();
      if (!value(&out->items_.back(), depth)) return false;
      skip_space();
    } while (take(','));
    return take(']');
  }

  bool number(std::string_view* out) {
    const size_t begin = at_;
    take('-');
    if (!take('0') && !digits()) return false;
    if (take('.') && !digits()) return false;
    if (take('e') || take('E')) {
      if (!take('+')) take('-');
      if (!digits()) return false;
    }
    *out = text_.substr(begin, at_ - begin);
    return true;
  }
  bool digits() {
    const size_t begin = at_;
    while (is_digit(peek())) ++at_;
    return at_ > begin;
  }

  bool string(std::string* out) {
    if (!take('"')) return false;
    while (at_ < text_.size()) {
      const char c = text_[at_++];
      if (c == '"') return true;
      if (static_cast<unsigned char>(c) < 0x20) return false;
      if (c != '\\') {
        *out += c;
      } else if (!escape(out)) {
        return false;
      }
    }
    return false;
  }

  bool escape(std::string* out) {
    constexpr std::string_view kNames = "\"\\/bfnrt";
    constexpr std::string_view kMeanings = "\"\\/\b\f\n\r\t";
    if (take('u')) return escaped_code(out);
    const size_t which = kNames.find(peek());
    if (at_ == text_.size() || which == std::string_view::npos) return false;
    ++at_;
    *out += kMeanings[which];
    return true;
  }

  bool escaped_code(std::string* out) {
    uint32_t code, low;
    if (!hex4(&code)) return false;
    if (code >= 0xDC00 && code < 0xE000) return false;
    if (code >= 0xD800 && code < 0xDC00) {
      if (!take('\\') || !take('u') || !hex4(&low) || low < 0xDC00 || low >= 0xE000) return false;
      code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    append_utf8(code, out);
    return true;
  }

  bool hex4(uint32_t* out) {
    constexpr std::string_view kDigits = "0123456789abcdef";
    *out = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const char c = peek();
      const size_t digit = kDigits.find(c >= 'A' && c <= 'F' ? static_cast<char>(c + ('a' - 'A')) : c);
      if (at_ == text_.size() || digit == std::string_view::npos) return false;
      *out = *out * 16 + static_cast<uint32_t>(digit);
    }
    return true;
  }

  std::string_view text_;
  size_t at_ = 0;
};

bool Json::parse(std::string_view text, Json* out, std::string* error) {
  *out = Json();
  JsonParser parser(text);
  if (parser.value(out, 0) && parser.at_end()) return true;
  *error = "no JSON at byte " + std::to_string(parser.position());
  return false;
}

const Json* Json::find(std::string_view name) const {
  const auto found = std::lower_bound(members_.begin(), members_.end(), name,
                                      [](const auto& member, std::string_view wanted) { return member.first < wanted; });
  return found == members_.end() || found->first != name ? nullptr : &found->second;
}

bool Json::get(uint64_t* value) const {
  if (kind_ != Kind::kNumber) return false;
  uint64_t sum = 0;
  for (const char c : number_) {
    if (!is_digit(c) || sum > kExact / 10) return false;
    sum = sum * 10 + static_cast<uint64_t>(c - '0');
  }
  *value = sum;
  return sum <= kExact;
}

bool Json::get(double* value) const {
  if (kind_ != Kind::kNumber) return false;
  uint64_t digits = 0;
  int64_t power = 0;
  size_t i = number_[0] == '-' ? 1 : 0;
  for (bool fraction = false; i < number_.size() && (is_digit(number_[i]) || number_[i] == '.'); ++i) {
    if (number_[i] == '.') {
      fraction = true;
      continue;
    }
    if (digits > kExact / 10 - 1) return false;
    digits = digits * 10 + static_cast<uint64_t>(number_[i] - '0');
    power -= fraction ? 1 : 0;
  }
  if (i < number_.size()) {
    const bool negative = number_[++i] == '-';
    int64_t exponent = 0;
    for (; i < number_.size() && exponent < 1000; ++i) {
      if (is_digit(number_[i])) exponent = exponent * 10 + (number_[i] - '0');
    }
    power += negative ? -exponent : exponent;
  }
  if (power < -22 || power > 22) return false;
  double scale = 1.0;
  for (int64_t k = 0; k < (power < 0 ? -power : power); ++k) scale *= 10.0;  // exact up to 10^22
  const double size = power < 0 ? static_cast<double>(digits) / scale : static_cast<double>(digits) * scale;
  *value = number_[0] == '-' ? -size : size;
  return true;
}

bool Json::get(std::string* value) const {
  if (kind_ != Kind::kString) return false;
  *value = text_;
  return true;
}

}  // namespace tinyqmoe
