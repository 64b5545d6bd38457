// The vectors of tests/golden, with every instruction set of this machine. Columns: tests/golden/README.md.
#include <cstring>
#include <map>
#include <sstream>

#include "check.h"
#include "support.h"
#include "tests.h"

namespace tests {
namespace {

using Row = std::map<std::string, std::string>;

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

class Golden {
 public:
  explicit Golden(std::string folder) : folder_(std::move(folder)) {}

  std::vector<Row> table(const std::string& name) const {
    const Bytes bytes = file(name);
    const std::vector<std::string> lines = split(std::string(bytes.begin(), bytes.end()), '\n');
    const std::vector<std::string> columns = split(lines.at(0), '\t');
    std::vector<Row> rows;
    for (size_t i = 1; i < lines.size(); ++i) {
      const std::vector<std::string> fields = split(lines[i], '\t');
      Row row;
      for (size_t c = 0; c < columns.size(); ++c) row[columns[c]] = fields.at(c);
      rows.push_back(row);
    }
    return rows;
  }

  Bytes file(const std::string& name) const { return read_file(folder_ + "/" + name); }

  template <typename T>
  std::vector<T> array(const std::string& name) const {
    const Bytes bytes = file(name);
    std::vector<T> values(bytes.size() / sizeof(T));
    std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
    return values;
  }

 private:
  std::string folder_;
};

uint32_t number(const Row& row, const char* column) { return static_cast<uint32_t>(std::stoul(row.at(column))); }
uint32_t hex(const Row& row, const char* column) {
  return static_cast<uint32_t>(std::stoul(row.at(column), nullptr, 16));
}

void test_decode(const Golden& golden, const Row& row) {
  g_context = row.at("file");
  const Bytes blob = golden.file(row.at("file"));
  Tensor tensor;
  CHECK(open(blob, TINYQMOE_VERIFY_PAYLOAD, &tensor) == TINYQMOE_OK);
  if (tensor == nullptr) return;
  tinyqmoe_info info;
  tinyqmoe_get_info(tensor.get(), &info);
  CHECK(info.rows == number(row, "rows") && info.cols == number(row, "cols"));
  const char* const codecs[] = {"raw", "lzw", "base3"};
  CHECK(info.codec < 3 && row.at("codec") == codecs[info.codec] && info.code_bits == number(row, "code_bits"));
  CHECK(info.cap == number(row, "cap") && info.n_levels == number(row, "n_levels"));
  CHECK(info.level_min == std::stoi(row.at("level_min")) && info.total_bytes <= blob.size());
  for (const tinyqmoe_isa isa : available_isas()) {
    Levels levels(size_t{info.rows} * info.cols);
    CHECK(tinyqmoe_decode_rows(tensor.get(), 0, info.rows, isa, levels.data()) == TINYQMOE_OK);
    CHECK(crc32_of(levels) == hex(row, "levels_crc32"));
    for (uint32_t r = 0; r < info.rows; ++r) {
      Levels one(info.cols);
      CHECK(tinyqmoe_decode_rows(tensor.get(), r, r + 1, isa, one.data()) == TINYQMOE_OK);
      CHECK(std::memcmp(one.data(), levels.data() + size_t{r} * info.cols, info.cols) == 0);
    }
  }
}

// Every way of reading all rows finds the same error, or, for check 20, none.
void test_bad_rows(const tinyqmoe_tensor* tensor, tinyqmoe_status expected, bool may_pass) {
  tinyqmoe_info info;
  tinyqmoe_get_info(tensor, &info);
  const auto fine = [&](tinyqmoe_status s) { return s == expected || (may_pass && s == TINYQMOE_OK); };
  for (const tinyqmoe_isa isa : available_isas()) {
    Levels levels(size_t{info.rows} * info.cols);
    CHECK(fine(tinyqmoe_decode_rows(tensor, 0, info.rows, isa, levels.data())));
    for (const uint32_t n_tokens : {1u, 3u}) {
      const Floats x(size_t{n_tokens} * info.cols, 1.0f);
      const Floats scales(info.rows, 1.0f);
      CHECK(fine(linear_x16(tensor, x, scales, info.cols, n_tokens, isa).status));
      CHECK(fine(linear_f32(tensor, x, scales, info.cols, n_tokens, isa).status));
    }
  }
}

void test_error(const Golden& golden, const Row& row) {
  g_context = row.at("file");
  const Bytes blob = golden.file(row.at("file"));
  const auto expected = static_cast<tinyqmoe_status>(number(row, "number"));
  CHECK(row.at("status") == tinyqmoe_status_name(expected));
  Tensor verified;
  CHECK(open(blob, TINYQMOE_VERIFY_PAYLOAD, &verified) == expected && verified == nullptr);
  Tensor tensor;
  const bool on_open = row.at("stage") == "open";
  CHECK(open(blob, 0, &tensor) == (on_open ? expected : TINYQMOE_OK));
  CHECK((tensor == nullptr) == on_open);
  if (tensor != nullptr) test_bad_rows(tensor.get(), expected, row.at("stage") == "verify");
}

StoredScales scales_of(const Row& row, const Bytes& stored) {
  const bool is_float = row.at("scale_type") == "float32";
  return {stored.data(), is_float ? TINYQMOE_SCALES_FLOAT32 : TINYQMOE_SCALES_UE6M10};
}

void test_linear(const Golden& golden, const Row& row) {
  g_context = row.at("blob");
  const Bytes blob = golden.file(row.at("blob"));
  const auto x = golden.array<float>(row.at("activations"));
  const Bytes stored = golden.file(row.at("scales"));
  const StoredScales scales = scales_of(row, stored);
  const uint32_t n_tokens = number(row, "n_tokens");
  const uint32_t group_size = number(row, "group_size");
  Tensor tensor;
  CHECK(open(blob, 0, &tensor) == TINYQMOE_OK);
  if (tensor == nullptr) return;
  tinyqmoe_info info;
  tinyqmoe_get_info(tensor.get(), &info);
  for (const tinyqmoe_isa isa : available_isas()) {
    const Product product = linear_x16(tensor.get(), x, scales, group_size, n_tokens, isa);
    CHECK(product.status == TINYQMOE_OK);
    CHECK(crc32_of(product.y) == hex(row, "y_crc32"));
    uint32_t quantized_crc = 0;
    Floats one_by_one;
    for (uint32_t t = 0; t < n_tokens; ++t) {
      const Floats token(x.begin() + t * info.cols, x.begin() + (t + 1) * info.cols);
      const Quantized quantized(info.cols, 1);
      float scale;
      CHECK(tinyqmoe_quantize_x16(token.data(), 1, info.cols, isa, quantized.bytes(), &scale) == TINYQMOE_OK);
      quantized_crc = tinyqmoe_crc32(quantized_crc, quantized.bytes(), info.cols * sizeof(int16_t));
      const Product part = linear_x16(tensor.get(), token, scales, group_size, 1, isa);
      one_by_one.insert(one_by_one.end(), part.y.begin(), part.y.end());
    }
    CHECK(quantized_crc == hex(row, "quantized_crc32"));
    CHECK(crc32_of(one_by_one) == hex(row, "y_crc32"));
  }
}

void test_embedding(const Golden& golden, const Row& row) {
  g_context = row.at("blob");
  const Bytes blob = golden.file(row.at("blob"));
  const auto ids = golden.array<int64_t>(row.at("ids"));
  const Bytes stored = golden.file(row.at("scales"));
  const StoredScales scales = scales_of(row, stored);
  Tensor tensor;
  CHECK(open(blob, 0, &tensor) == TINYQMOE_OK);
  if (tensor == nullptr) return;
  tinyqmoe_info info;
  tinyqmoe_get_info(tensor.get(), &info);
  for (const tinyqmoe_isa isa : available_isas()) {
    Floats out(ids.size() * info.cols);
    const tinyqmoe_embedding_args args = {tensor.get(), scales.values, scales.type, number(row, "group_size"), isa,
                                          ids.data(), ids.size(), out.data()};
    CHECK(tinyqmoe_embedding(&args) == TINYQMOE_OK);
    CHECK(crc32_of(out) == hex(row, "out_crc32"));
  }
}

}  // namespace

void test_golden(const std::string& folder) {
  const Golden golden(folder);
  for (const Row& row : golden.table("decode.tsv")) test_decode(golden, row);
  for (const Row& row : golden.table("errors.tsv")) test_error(golden, row);
  for (const Row& row : golden.table("linear.tsv")) test_linear(golden, row);
  for (const Row& row : golden.table("embedding.tsv")) test_embedding(golden, row);
}

}  // namespace tests
