// Some products of a blob, all alike: LIBRARY BLOB N_TOKENS N_PRODUCTS BUDGET. With a budget, in bytes, they are of the
// expanded form. What is counted is tinyqmoe_linear_x16 alone.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <vector>

#include "tinyqmoe/tinyqmoe.h"

namespace {

void* g_library;

template <typename Function>
Function* find(Function*, const char* name) {
  void* const found = dlsym(g_library, name);
  if (found == nullptr) std::exit((std::fprintf(stderr, "%s is missing\n", name), 1));
  return reinterpret_cast<Function*>(found);
}

#define CORE(name) find(static_cast<decltype(name)*>(nullptr), #name)

void* aligned(uint64_t bytes) { return std::aligned_alloc(64, (bytes + 63) / 64 * 64); }

}  // namespace

int main(int argc, char** argv) {
  if (argc != 7 || (g_library = dlopen(argv[1], RTLD_NOW)) == nullptr) return 2;
  std::ifstream file(argv[2], std::ios::binary | std::ios::ate);
  std::vector<char> blob(static_cast<size_t>(file.tellg()));
  file.seekg(0).read(blob.data(), static_cast<std::streamsize>(blob.size()));
  const uint32_t n_tokens = static_cast<uint32_t>(std::atoi(argv[3]));
  tinyqmoe_tensor* tensor = nullptr;
  if (CORE(tinyqmoe_open)(blob.data(), blob.size(), TINYQMOE_VERIFY_PAYLOAD, &tensor) != TINYQMOE_OK) return 3;
  CORE(tinyqmoe_set_budget)(std::strtoull(argv[5], nullptr, 10));
  tinyqmoe_form* form = nullptr;
  if (CORE(tinyqmoe_acquire)(tensor, &form) != TINYQMOE_OK) return 6;
  const tinyqmoe_tensor* const multiplied = CORE(tinyqmoe_form_tensor)(form);
  tinyqmoe_info info;
  CORE(tinyqmoe_get_info)(tensor, &info);
  std::vector<float> x(size_t{n_tokens} * info.cols), y(size_t{n_tokens} * info.rows), x_scales(n_tokens);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * 37 % 1000) - 500.0f;
  const uint32_t group_size = std::min(static_cast<uint32_t>(std::atoi(argv[6])), info.cols);
  const std::vector<uint16_t> scales(size_t{info.rows} * ((info.cols + group_size - 1) / group_size), 0xBC00);  // 1
  void* const quantized = aligned(n_tokens * CORE(tinyqmoe_quantized_bytes)(info.cols));
  const auto quantize = CORE(tinyqmoe_quantize_x16);
  if (quantize(x.data(), n_tokens, info.cols, TINYQMOE_ISA_AUTO, quantized, x_scales.data()) != TINYQMOE_OK) return 4;
  const uint64_t scratch_bytes = CORE(tinyqmoe_linear_scratch_bytes)(multiplied, n_tokens);
  const tinyqmoe_linear_args args = {multiplied, scales.data(), TINYQMOE_SCALES_UE6M10, group_size, n_tokens, 0, info.rows,
                                     TINYQMOE_ISA_AUTO, aligned(scratch_bytes), scratch_bytes, y.data()};
  const auto multiply = CORE(tinyqmoe_linear_x16);
  for (int i = std::atoi(argv[4]); i > 0; --i) {
    if (multiply(&args, quantized, x_scales.data()) != TINYQMOE_OK) return 5;
  }
}
