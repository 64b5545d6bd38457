// The main of a fuzz target where there is no libFuzzer: each seed as it is, then copies with random changes.
//
// It is not guided by coverage, and makes the same inputs every time: a test that found nothing finds nothing again.
#include <algorithm>
#include <cstring>

#include "support.h"
#include "target.h"

namespace {

using namespace tests;

void mutate(Bytes* input, Random& random) {
  for (uint32_t n = random() % 4 + 1; n > 0 && !input->empty(); --n) {
    // Half of the changes in the first 128 bytes: header and tables matter most.
    const size_t reach = random() % 2 == 0 ? std::min<size_t>(input->size(), 128) : input->size();
    const size_t at = random() % reach;
    switch (random() % 5) {
      case 0: (*input)[at] ^= static_cast<uint8_t>(1u << random() % 8); break;
      case 1: (*input)[at] = static_cast<uint8_t>(random()); break;
      case 2: (*input)[at] = random() % 2 == 0 ? 0 : 0xFF; break;
      case 3: std::memmove(input->data() + at, input->data(), std::min<size_t>(8, input->size() - at)); break;
      default:
        if (random() % 8 == 0) input->resize(at);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::printf("usage: %s RUNS SEED_FILES...\n", argv[0]);
    return 2;
  }
  std::vector<Bytes> seeds;
  for (int i = 2; i < argc; ++i) seeds.push_back(read_file(argv[i]));
  for (const Bytes& seed : seeds) LLVMFuzzerTestOneInput(seed.data(), seed.size());
  const size_t good_seeds = accepted();
  Random random(1);
  const int runs = std::atoi(argv[1]);
  for (int i = 0; i < runs; ++i) {
    Bytes input = seeds[random() % seeds.size()];
    mutate(&input, random);
    LLVMFuzzerTestOneInput(input.data(), input.size());
  }
  std::printf("accepted: %zu of %zu seeds, %zu of %d changes\n", good_seeds, seeds.size(), accepted() - good_seeds, runs);
  return 0;
}
