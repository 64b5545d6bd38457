#include "support.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>

namespace tests {
namespace {

struct Node {
  uint32_t first_child = 0;  // 0: a leaf
  uint32_t depth = 0;
};

void put_node(const std::vector<Node>& nodes, uint32_t node, uint32_t n_levels, std::vector<bool>* bits) {
  const uint32_t first = nodes[node].first_child;
  bits->push_back(first != 0);
  for (uint32_t i = 0; first != 0 && i < n_levels; ++i) put_node(nodes, first + i, n_levels, bits);
}

template <typename T>
void put(Bytes* blob, size_t offset, T value) {
  std::memcpy(blob->data() + offset, &value, sizeof value);
}

template <typename T>
T get(const Bytes& blob, size_t offset) {
  T value;
  std::memcpy(&value, blob.data() + offset, sizeof value);
  return value;
}

void pad(Bytes* blob, size_t multiple) { blob->resize((blob->size() + multiple - 1) / multiple * multiple); }

void require(tinyqmoe_status status) {
  if (status != TINYQMOE_OK) throw std::runtime_error(tinyqmoe_status_name(status));
}

void put_header(Bytes* blob, const Spec& spec, uint32_t n_entries, uint64_t payload_offset, uint64_t payload_bytes) {
  std::memcpy(blob->data(), "TQLZ", 4);
  put<uint16_t>(blob, 4, 1);
  put<uint16_t>(blob, 6, 64);
  (*blob)[8] = spec.codec;
  (*blob)[9] = spec.code_bits;
  (*blob)[10] = spec.cap;
  (*blob)[11] = static_cast<uint8_t>(spec.level_min);
  put<uint16_t>(blob, 12, static_cast<uint16_t>(spec.n_levels));
  put<uint32_t>(blob, 16, spec.rows);
  put<uint32_t>(blob, 20, spec.cols);
  put<uint32_t>(blob, 24, n_entries);
  put<uint64_t>(blob, 32, payload_offset);
  put<uint64_t>(blob, 40, payload_bytes);
}

void append_index(const std::vector<uint16_t>& row_codes, uint32_t code_bits, Bytes* blob) {
  std::vector<uint32_t> tiles;
  uint32_t offset = 0;
  for (size_t row = 0; row < row_codes.size(); ++row) {
    if (row % 32 == 0) tiles.push_back(offset);
    offset += (row_codes[row] * code_bits + 7) / 8;
  }
  const auto append = [blob](const void* p, size_t n) {
    const uint8_t* bytes = static_cast<const uint8_t*>(p);
    blob->insert(blob->end(), bytes, bytes + n);
  };
  append(tiles.data(), tiles.size() * 4);
  append(row_codes.data(), row_codes.size() * 2);
}

using Aligned = std::unique_ptr<void, void (*)(void*)>;

Aligned aligned(uint64_t bytes) { return Aligned(std::aligned_alloc(64, (bytes + 63) / 64 * 64), std::free); }

}  // namespace

std::string Spec::name() const {
  return std::string(codec ? "lzw" : "raw") + std::to_string(code_bits) + " cap " + std::to_string(cap) + " levels " +
         std::to_string(level_min) + "+" + std::to_string(n_levels) + " " + std::to_string(rows) + "x" +
         std::to_string(cols);
}

std::vector<tinyqmoe_isa> available_isas() {
  switch (tinyqmoe_best_isa()) {
    case TINYQMOE_ISA_AVX2: return {TINYQMOE_ISA_SCALAR, TINYQMOE_ISA_AVX2};
    case TINYQMOE_ISA_AVX512: return {TINYQMOE_ISA_SCALAR, TINYQMOE_ISA_AVX2, TINYQMOE_ISA_AVX512};
    case TINYQMOE_ISA_NEON: return {TINYQMOE_ISA_SCALAR, TINYQMOE_ISA_NEON};
    case TINYQMOE_ISA_NEON_DOTPROD: return {TINYQMOE_ISA_SCALAR, TINYQMOE_ISA_NEON, TINYQMOE_ISA_NEON_DOTPROD};
    default: return {TINYQMOE_ISA_SCALAR};
  }
}

std::pair<Bytes, uint32_t> random_tree(const Spec& spec, Random& random) {
  const uint32_t most = 1u << spec.code_bits;
  std::vector<Node> nodes(1);
  std::vector<uint32_t> leaves = {0};
  while (!leaves.empty()) {
    const uint32_t n_leaves = static_cast<uint32_t>((nodes.size() - 1) / spec.n_levels) * (spec.n_levels - 1) + 1;
    if (n_leaves + spec.n_levels - 1 > most) break;
    const size_t pick = random() % 4 == 0 ? random() % leaves.size() : leaves.size() - 1;
    const uint32_t node = leaves[pick];
    leaves.erase(leaves.begin() + static_cast<std::ptrdiff_t>(pick));
    nodes[node].first_child = static_cast<uint32_t>(nodes.size());
    const uint32_t depth = nodes[node].depth + 1;
    for (uint32_t i = 0; i < spec.n_levels; ++i) {
      if (depth < spec.cap) leaves.push_back(static_cast<uint32_t>(nodes.size()));
      nodes.push_back({0, depth});
    }
  }
  std::vector<bool> bits;
  put_node(nodes, 0, spec.n_levels, &bits);
  Bytes section((bits.size() + 7) / 8);
  for (size_t i = 0; i < bits.size(); ++i) section[i / 8] |= static_cast<uint8_t>(bits[i] << (i % 8));
  return {section, static_cast<uint32_t>((nodes.size() - 1) / spec.n_levels * (spec.n_levels - 1) + 1)};
}

Levels random_levels(const Spec& spec, Random& random) {
  const int level_max = spec.level_min + static_cast<int>(spec.n_levels) - 1;
  std::normal_distribution<float> normal(0.0f, static_cast<float>(spec.n_levels) / 4.0f);
  Levels levels(size_t{spec.rows} * spec.cols);
  for (int8_t& level : levels) {
    const int drawn = static_cast<int>(normal(random));
    level = static_cast<int8_t>(std::clamp(drawn, spec.level_min, level_max));
  }
  return levels;
}

Bytes make_blob(const Spec& spec, const Levels& levels, Random& random) {
  Bytes blob(64);
  const uint64_t room = uint64_t{spec.rows} * ((uint64_t{spec.cols} * spec.code_bits + 7) / 8);
  Bytes payload(room);
  uint64_t payload_bytes = room;
  uint32_t n_entries = 0;
  const tinyqmoe_encode_args args = {levels.data(),  spec.rows,      spec.cols,      static_cast<int8_t>(spec.level_min),
                                     spec.n_levels, spec.code_bits, payload.data(), room};
  if (spec.codec == 0) {
    require(tinyqmoe_encode_raw(&args));
  } else {
    Bytes tree;
    std::tie(tree, n_entries) = random_tree(spec, random);
    std::vector<uint16_t> row_codes(spec.rows);
    const tinyqmoe_encode_dictionary dictionary = {spec.cap, n_entries, tree.data(), tree.size()};
    require(tinyqmoe_encode_lzw(&args, &dictionary, row_codes.data(), &payload_bytes));
    blob.insert(blob.end(), tree.begin(), tree.end());
    pad(&blob, 4);
    append_index(row_codes, spec.code_bits, &blob);
  }
  pad(&blob, 64);
  put_header(&blob, spec, n_entries, blob.size(), payload_bytes);
  blob.insert(blob.end(), payload.begin(), payload.begin() + static_cast<std::ptrdiff_t>(payload_bytes));
  blob.resize(blob.size() + 16);
  pad(&blob, 64);
  reseal(&blob);
  return blob;
}

void reseal(Bytes* blob) {
  if (blob->size() < 64) return;
  const uint64_t offset = get<uint64_t>(*blob, 32);
  const uint64_t bytes = get<uint64_t>(*blob, 40);
  if (offset >= 64 && offset <= blob->size()) {
    put(blob, 48, tinyqmoe_crc32(0, blob->data() + 64, offset - 64));
    if (bytes <= blob->size() - offset) put(blob, 52, tinyqmoe_crc32(0, blob->data() + offset, bytes));
  }
  put(blob, 60, tinyqmoe_crc32(0, blob->data(), 60));
}

tinyqmoe_status open(const Bytes& blob, uint32_t flags, Tensor* out) {
  tinyqmoe_tensor* tensor = nullptr;
  const tinyqmoe_status status = tinyqmoe_open(blob.data(), blob.size(), flags, &tensor);
  out->reset(tensor);
  return status;
}

Quantized::Quantized(uint32_t cols, uint32_t n_tokens)
    : cols_(cols), bytes_(aligned(tinyqmoe_quantized_bytes(cols) * n_tokens)) {}

std::vector<int16_t> Quantized::token(uint32_t t) const {
  const char* const bytes = static_cast<const char*>(bytes_.get()) + tinyqmoe_quantized_bytes(cols_) * t;
  std::vector<int16_t> q(cols_);
  std::memcpy(q.data(), bytes, q.size() * sizeof(int16_t));
  return q;
}

Product linear_x16(const tinyqmoe_tensor* tensor, const Floats& x, const Floats& scales, uint32_t group_size,
                   uint32_t n_tokens, tinyqmoe_isa isa) {
  tinyqmoe_info info;
  tinyqmoe_get_info(tensor, &info);
  Product product{TINYQMOE_OK, Floats(size_t{n_tokens} * info.rows)};
  const Quantized quantized(info.cols, n_tokens);
  Floats x_scales(n_tokens);
  product.status = tinyqmoe_quantize_x16(x.data(), n_tokens, info.cols, isa, quantized.bytes(), x_scales.data());
  const uint64_t bytes = tinyqmoe_linear_scratch_bytes(tensor, n_tokens);
  const Aligned scratch = aligned(bytes);
  const uint32_t half = info.rows / 2;
  const std::pair<uint32_t, uint32_t> parts[] = {{half, info.rows}, {0, half}};
  for (const auto& [begin, end] : parts) {
    if (product.status != TINYQMOE_OK) break;
    const tinyqmoe_linear_args args = {tensor, scales.data(),  group_size, n_tokens,          begin, end,
                                       isa,    scratch.get(), bytes,      product.y.data()};
    product.status = tinyqmoe_linear_x16(&args, quantized.bytes(), x_scales.data());
  }
  return product;
}

Product linear_f32(const tinyqmoe_tensor* tensor, const Floats& x, const Floats& scales, uint32_t group_size,
                   uint32_t n_tokens, tinyqmoe_isa isa) {
  tinyqmoe_info info;
  tinyqmoe_get_info(tensor, &info);
  Product product{TINYQMOE_OK, Floats(size_t{n_tokens} * info.rows)};
  const uint64_t bytes = tinyqmoe_linear_scratch_bytes(tensor, n_tokens);
  const Aligned scratch = aligned(bytes);
  const tinyqmoe_linear_args args = {tensor, scales.data(),  group_size, n_tokens,          0, info.rows,
                                     isa,    scratch.get(), bytes,      product.y.data()};
  product.status = tinyqmoe_linear_f32(&args, x.data());
  return product;
}

Bytes read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  return Bytes(std::istreambuf_iterator<char>(file), {});
}

}  // namespace tests
