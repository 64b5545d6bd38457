#include "support.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "expand.h"

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

void append_bits(const std::vector<bool>& bits, Bytes* out) {
  const size_t begin = out->size();
  out->resize(begin + (bits.size() + 7) / 8);
  for (size_t i = 0; i < bits.size(); ++i) (*out)[begin + i / 8] |= static_cast<uint8_t>(bits[i] << (i % 8));
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

struct Sizes {
  uint32_t n_entries;
  uint32_t index_bytes;
  uint64_t payload_bytes;
};

void put_header(Bytes* blob, const Spec& spec, const Sizes& sizes) {
  std::memcpy(blob->data(), "TQLZ", 4);
  put<uint16_t>(blob, 4, 2);
  put<uint16_t>(blob, 6, 64);
  (*blob)[8] = spec.codec;
  (*blob)[9] = spec.code_bits;
  (*blob)[10] = spec.cap;
  (*blob)[11] = static_cast<uint8_t>(spec.level_min);
  put<uint16_t>(blob, 12, static_cast<uint16_t>(spec.n_levels));
  put<uint32_t>(blob, 16, spec.rows);
  put<uint32_t>(blob, 20, spec.cols);
  put<uint32_t>(blob, 24, sizes.n_entries);
  if (spec.codec == 1) {
    put<uint16_t>(blob, 14, static_cast<uint16_t>(spec.n_core()));
    put<uint16_t>(blob, 28, static_cast<uint16_t>(spec.core_first()));
  }
  put<uint64_t>(blob, 32, blob->size());
  put<uint64_t>(blob, 40, sizes.payload_bytes);
  put<uint32_t>(blob, 56, sizes.index_bytes);
}

void append_index(const std::vector<uint32_t>& row_bytes, Bytes* blob) {
  for (size_t first = 0; first < row_bytes.size(); first += 32) {
    const size_t end = std::min(row_bytes.size(), first + 32);
    const auto range = std::minmax_element(row_bytes.begin() + static_cast<std::ptrdiff_t>(first),
                                           row_bytes.begin() + static_cast<std::ptrdiff_t>(end));
    const uint32_t shortest = *range.first;
    uint32_t width = 0;
    while ((*range.second - shortest) >> width != 0) ++width;
    std::vector<bool> bits(32 * (1 + width));
    const auto set = [&bits](size_t at, uint32_t n, uint32_t value) {
      for (uint32_t i = 0; i < n; ++i) bits[at + i] = value >> i & 1;
    };
    set(0, 32, shortest | width << 24);
    for (size_t row = first; row < end; ++row) set(32 + (row - first) * width, width, row_bytes[row] - shortest);
    append_bits(bits, blob);
  }
}

// Code lengths, four bits each: the longest codeword is split now and then, any other else.
void append_lengths(uint32_t n_entries, Random& random, Bytes* section) {
  std::vector<uint32_t> lengths = {1, 1};
  while (lengths.size() < n_entries) {
    const size_t pick = random() % 3 == 0 ? lengths.size() - 1 : random() % lengths.size();
    if (lengths[pick] == 12) continue;
    lengths.push_back(++lengths[pick]);
  }
  std::shuffle(lengths.begin(), lengths.end(), random);
  std::vector<bool> bits;
  for (const uint32_t length : lengths) {
    for (uint32_t i = 0; i < 4; ++i) bits.push_back(length >> i & 1);
  }
  append_bits(bits, section);
}

using Aligned = std::unique_ptr<void, void (*)(void*)>;

Aligned aligned(uint64_t bytes) { return Aligned(std::aligned_alloc(64, (bytes + 63) / 64 * 64), std::free); }

}  // namespace

std::string Spec::name() const {
  const char* const names[] = {"raw", "lzw", "base3"};
  return names[codec] + std::to_string(code_bits) + " cap " + std::to_string(cap) + " levels " +
         std::to_string(level_min) + "+" + std::to_string(n_levels) + " core " + std::to_string(n_core()) + " " +
         std::to_string(rows) + "x" + std::to_string(cols);
}

std::vector<tinyqmoe_isa> available_isas() {
  switch (tinyqmoe_best_isa()) {
    case TINYQMOE_ISA_AVX2: return {TINYQMOE_ISA_SCALAR, TINYQMOE_ISA_AVX2};
    case TINYQMOE_ISA_AVX512: return {TINYQMOE_ISA_SCALAR, TINYQMOE_ISA_AVX2, TINYQMOE_ISA_AVX512};
    case TINYQMOE_ISA_NEON: return {TINYQMOE_ISA_SCALAR, TINYQMOE_ISA_NEON};
    case TINYQMOE_ISA_NEON_DOTPROD: return {TINYQMOE_ISA_SCALAR, TINYQMOE_ISA_NEON, TINYQMOE_ISA_NEON_DOTPROD};
    case TINYQMOE_ISA_NEON_I8MM:
      return {TINYQMOE_ISA_SCALAR, TINYQMOE_ISA_NEON, TINYQMOE_ISA_NEON_DOTPROD, TINYQMOE_ISA_NEON_I8MM};
    case TINYQMOE_ISA_SIMD128: return {TINYQMOE_ISA_SCALAR, TINYQMOE_ISA_SIMD128};
    default: return {TINYQMOE_ISA_SCALAR};
  }
}

RandomDictionary random_dictionary(const Spec& spec, Random& random) {
  const uint32_t n_children = spec.n_core() + (spec.n_core() < spec.n_levels);
  std::vector<Node> nodes(1);
  std::vector<uint32_t> leaves = {0};  // that may be split
  uint32_t n_entries = 1;
  while (!leaves.empty() && n_entries + n_children - 1 <= 256) {
    const size_t pick = random() % 4 == 0 ? random() % leaves.size() : leaves.size() - 1;
    const uint32_t node = leaves[pick];
    leaves.erase(leaves.begin() + static_cast<std::ptrdiff_t>(pick));
    nodes[node].first_child = static_cast<uint32_t>(nodes.size());
    const uint32_t depth = nodes[node].depth + 1;
    for (uint32_t i = 0; i < n_children; ++i) {
      if (depth < spec.cap && i < spec.n_core()) leaves.push_back(static_cast<uint32_t>(nodes.size()));
      nodes.push_back({0, depth});
    }
    n_entries += n_children - 1;
  }
  std::vector<bool> bits;
  put_node(nodes, 0, n_children, &bits);
  RandomDictionary dictionary{{}, n_entries};
  append_bits(bits, &dictionary.section);
  append_lengths(n_entries, random, &dictionary.section);
  return dictionary;
}

Levels levels_with_exceptions(const Spec& spec, uint32_t bits, uint32_t one_of, Random& random) {
  const int level_max = spec.level_min + static_cast<int>(spec.n_levels) - 1, n_levels = 1 << bits;
  const int low = std::clamp(-n_levels / 2, spec.level_min, level_max - n_levels + 1), high = low + n_levels - 1;
  Levels levels(size_t{spec.rows} * spec.cols);
  for (int8_t& level : levels) {
    const bool any = one_of > 0 && random() % one_of == 0;
    const int least = any ? spec.level_min : low;
    const uint32_t n = static_cast<uint32_t>((any ? level_max : high) - least + 1);
    level = static_cast<int8_t>(least + static_cast<int>(random() % n));
  }
  return levels;
}

Bytes clipped_copy(const tinyqmoe_tensor* tensor, tinyqmoe::Form form) {
  tinyqmoe_info info;
  tinyqmoe_get_info(tensor, &info);
  Bytes blob(tinyqmoe::form_bytes(info, form));
  const tinyqmoe_status status = tinyqmoe::expand_to_memory(*tensor, form, nullptr, blob.data());
  if (status != TINYQMOE_OK) throw std::runtime_error(std::string("no clipped copy: ") + tinyqmoe_status_name(status));
  return blob;
}

Levels random_levels(const Spec& spec, Random& random) {
  const int level_max = spec.level_min + static_cast<int>(spec.n_levels) - 1;
  std::normal_distribution<float> normal(0.0f, static_cast<float>(spec.n_levels) / 4.0f);
  const bool dense = spec.codec == 2;  // base-3, whose digits are equally likely: so that all codes are there
  Levels levels(size_t{spec.rows} * spec.cols);
  for (int8_t& level : levels) {
    const int drawn = dense ? spec.level_min + static_cast<int>(random() % 3) : static_cast<int>(normal(random));
    level = static_cast<int8_t>(std::clamp(drawn, spec.level_min, level_max));
  }
  return levels;
}

tinyqmoe_status encode_blob(const Spec& spec, const Levels& levels, const RandomDictionary& dictionary, Bytes* blob) {
  blob->assign(64, 0);
  Bytes payload(levels.size() * 20 / 8 + spec.rows);
  const tinyqmoe_encode_args args = {levels.data(),  spec.rows,      spec.cols,      static_cast<int8_t>(spec.level_min),
                                     spec.n_levels, spec.code_bits, payload.data(), payload.size()};
  Sizes sizes{};
  if (spec.codec == 1) {
    std::vector<uint32_t> row_bytes(spec.rows);
    const tinyqmoe_encode_dictionary tables = dictionary.of(spec);
    const tinyqmoe_status status = tinyqmoe_encode_lzw(&args, &tables, row_bytes.data(), &sizes.payload_bytes);
    if (status != TINYQMOE_OK) return status;
    blob->insert(blob->end(), dictionary.section.begin(), dictionary.section.end());
    pad(blob, 4);
    const size_t index = blob->size();
    append_index(row_bytes, blob);
    sizes.n_entries = dictionary.n_entries;
    sizes.index_bytes = static_cast<uint32_t>(blob->size() - index);
  } else {
    const tinyqmoe_status status = spec.codec == 0 ? tinyqmoe_encode_raw(&args) : tinyqmoe_encode_base3(&args);
    if (status != TINYQMOE_OK) return status;
    const uint64_t row_bytes = spec.codec == 0 ? (uint64_t{spec.cols} * spec.code_bits + 7) / 8 : (spec.cols + 4) / 5;
    sizes.payload_bytes = spec.rows * row_bytes;
  }
  pad(blob, 64);
  put_header(blob, spec, sizes);
  blob->insert(blob->end(), payload.begin(), payload.begin() + static_cast<std::ptrdiff_t>(sizes.payload_bytes));
  blob->resize(blob->size() + 16);
  pad(blob, 64);
  reseal(blob);
  return TINYQMOE_OK;
}

Bytes make_blob(const Spec& spec, const Levels& levels, Random& random) {
  Bytes blob;
  const RandomDictionary dictionary = spec.codec == 1 ? random_dictionary(spec, random) : RandomDictionary{};
  const tinyqmoe_status status = encode_blob(spec, levels, dictionary, &blob);
  if (status != TINYQMOE_OK) throw std::runtime_error(tinyqmoe_status_name(status));
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

Product linear_x16(const tinyqmoe_tensor* tensor, const Floats& x, const StoredScales& scales, uint32_t group_size,
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
    const tinyqmoe_linear_args args = {tensor, scales.values, scales.type, group_size, n_tokens, begin, end, isa,
                                       scratch.get(), bytes, product.y.data()};
    product.status = tinyqmoe_linear_x16(&args, quantized.bytes(), x_scales.data());
  }
  return product;
}

Product linear_f32(const tinyqmoe_tensor* tensor, const Floats& x, const StoredScales& scales, uint32_t group_size,
                   uint32_t n_tokens, tinyqmoe_isa isa) {
  tinyqmoe_info info;
  tinyqmoe_get_info(tensor, &info);
  Product product{TINYQMOE_OK, Floats(size_t{n_tokens} * info.rows)};
  const uint64_t bytes = tinyqmoe_linear_scratch_bytes(tensor, n_tokens);
  const Aligned scratch = aligned(bytes);
  const tinyqmoe_linear_args args = {tensor, scales.values, scales.type, group_size, n_tokens, 0, info.rows, isa,
                                     scratch.get(), bytes, product.y.data()};
  product.status = tinyqmoe_linear_f32(&args, x.data());
  return product;
}

// By C's streams: the C++ library of WebAssembly has none of files.
Bytes read_file(const std::string& path) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
  if (file == nullptr) throw std::runtime_error("cannot read " + path);
  Bytes bytes;
  uint8_t buffer[1 << 14];
  while (const size_t n = std::fread(buffer, 1, sizeof buffer, file.get())) bytes.insert(bytes.end(), buffer, buffer + n);
  return bytes;
}

}  // namespace tests
