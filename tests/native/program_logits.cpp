// Runs a program as an app does that links ExecuTorch's core runtime and our kernels, and nothing else: no delegate, no
// kernels of ExecuTorch's, no Python.
//
//   program_logits MODEL.pte < CALLS > LOGITS
//
// A line of CALLS is a position and the tokens from there on; the logits of each call are written as float32.
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

using executorch::extension::from_blob;
using executorch::extension::Module;

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  Module module(argv[1], Module::LoadMode::Mmap);
  std::string line;
  while (std::getline(std::cin, line)) {
    std::istringstream numbers(line);
    int64_t position, token;
    std::vector<int64_t> tokens;
    numbers >> position;
    while (numbers >> token) tokens.push_back(token);
    const auto sizes = std::vector<executorch::aten::SizesType>{1, static_cast<int>(tokens.size())};
    const auto ids = from_blob(tokens.data(), sizes, executorch::aten::ScalarType::Long);
    const auto at = from_blob(&position, {1}, executorch::aten::ScalarType::Long);
    const auto outputs = module.forward({ids, at});
    if (!outputs.ok()) {
      std::fprintf(stderr, "forward failed with error %d\n", static_cast<int>(outputs.error()));
      return 1;
    }
    const auto logits = outputs->at(0).toTensor();
    std::fwrite(logits.const_data_ptr<float>(), sizeof(float), static_cast<size_t>(logits.numel()), stdout);
  }
  return 0;
}
