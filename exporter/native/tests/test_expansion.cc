// Expanded copies: the raw blob of the same levels, whoever makes its parts and wherever they go.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <stdexcept>
#include <thread>

#include "bytes.h"
#include "check.h"
#include "expand.h"
#include "kernels.h"
#include "support.h"
#include "tests.h"

namespace tests {
namespace {

using tinyqmoe::Form;

// Several parts each, the last of them shorter.
const Spec kSpecs[] = {
    {2, 8, 5, -1, 3, 100, 5003},  {1, 12, 14, -1, 3, 70, 8193},      {1, 12, 6, -7, 15, 70, 5001},
    {1, 12, 3, -127, 255, 75, 3000, 31}, {1, 12, 3, 0, 2, 97, 9000},
};

// Runs the parts in threads of its own, the last part first.
void run_in_threads(void* host, uint64_t n_parts, void (*work)(void* context, uint64_t part), void* context) {
  std::atomic<uint64_t> next{n_parts};
  const auto take = [&] {
    for (uint64_t left = next; left > 0; left = next) {
      if (next.compare_exchange_strong(left, left - 1)) work(context, left - 1);
    }
  };
  std::thread other(take);
  take();
  other.join();
  *static_cast<uint64_t*>(host) += n_parts;
}

struct Threads {
  uint64_t n_parts = 0;  // that were made
  tinyqmoe_threads threads{&n_parts, run_in_threads};
};

struct TemporaryFile {
  std::FILE* file = std::tmpfile();

  TemporaryFile() {
    if (file == nullptr) throw std::runtime_error("no temporary file");
  }
  ~TemporaryFile() { std::fclose(file); }

  Bytes content(size_t n) const {
    Bytes bytes(n + 1);
    const ssize_t read = pread(fileno(file), bytes.data(), bytes.size(), 0);
    bytes.resize(static_cast<size_t>(std::max<ssize_t>(read, 0)));
    return bytes;
  }
};

Spec raw_spec(const Spec& coded) {
  return {0, static_cast<uint8_t>(tinyqmoe::raw_bits(coded.n_levels)), 0, coded.level_min, coded.n_levels, coded.rows,
          coded.cols};
}

void test_copies() {
  for (const Spec& spec : kSpecs) {
    g_context = "expansion " + spec.name();
    Random random(3);
    const Levels levels = random_levels(spec, random);
    const Bytes blob = make_blob(spec, levels, random), expected = make_blob(raw_spec(spec), levels, random);
    Tensor tensor;
    CHECK(open(blob, 0, &tensor) == TINYQMOE_OK);
    for (const bool in_threads : {false, true}) {
      Threads host;
      const tinyqmoe_threads* const threads = in_threads ? &host.threads : nullptr;
      const TemporaryFile file;
      bool written = false;
      CHECK(tinyqmoe::expand_to_file(*tensor, Form::kRaw, threads, fileno(file.file), &written) == TINYQMOE_OK && written);
      CHECK(file.content(expected.size()) == expected);
      Bytes memory(expected.size());
      CHECK(tinyqmoe::expand_to_memory(*tensor, Form::kRaw, threads, memory.data()) == TINYQMOE_OK);
      std::copy_n(expected.begin() + 52, 4, memory.begin() + 52);  // the CRC, which memory lacks,
      std::copy_n(expected.begin() + 60, 4, memory.begin() + 60);  // and that of the header
      CHECK(memory == expected);
      CHECK(host.n_parts == 0 || in_threads);
      CHECK(!in_threads || host.n_parts > 2);
    }
  }
}

void test_what_fails() {
  for (const Spec& spec : kSpecs) {
    Random random(4);
    Bytes blob = make_blob(spec, random_levels(spec, random), random);
    Tensor tensor;
    CHECK(open(blob, 0, &tensor) == TINYQMOE_OK);
    tinyqmoe_info info;
    tinyqmoe_get_info(tensor.get(), &info);
    Bytes memory(tinyqmoe::form_bytes(info, Form::kRaw));
    g_context = "expansion into a file that is read-only " + spec.name();
    bool written = true;
    const int read_only = ::open("/dev/null", O_RDONLY);
    CHECK(tinyqmoe::expand_to_file(*tensor, Form::kRaw, nullptr, read_only, &written) == TINYQMOE_OK && !written);
    close(read_only);
    g_context = "expansion of a payload with a flipped bit " + spec.name();
    const size_t payload = tinyqmoe::load<uint64_t>(blob.data() + 32);
    for (const size_t at : {payload, payload + info.payload_bytes / 2}) {
      Threads host;
      blob[at] ^= 1;
      CHECK(tinyqmoe::expand_to_memory(*tensor, Form::kRaw, &host.threads, memory.data()) == TINYQMOE_BAD_PAYLOAD_CRC);
      CHECK(tinyqmoe::expand_to_memory(*tensor, Form::kRaw, nullptr, memory.data()) == TINYQMOE_BAD_PAYLOAD_CRC);
      blob[at] ^= 1;
    }
    CHECK(tinyqmoe::expand_to_memory(*tensor, Form::kRaw, nullptr, memory.data()) == TINYQMOE_OK);
  }
}

// The same bytes whoever makes the parts, in memory and in a file.
void test_clipped_copies(Form form) {
  const Spec spec = {0, 8, 0, -127, 255, 75, 6001};
  g_context = "expansion to clipped levels";
  Random random(8);
  const Levels levels = levels_with_exceptions(spec, tinyqmoe::clipped_bits(form), 90, random);
  const Bytes blob = make_blob(spec, levels, random);
  Tensor tensor;
  CHECK(open(blob, 0, &tensor) == TINYQMOE_OK);
  const Bytes expected = clipped_copy(tensor.get(), form);
  Threads host;
  Bytes memory(expected.size());
  CHECK(tinyqmoe::expand_to_memory(*tensor, form, &host.threads, memory.data()) == TINYQMOE_OK);
  CHECK(memory == expected && host.n_parts > 2);
  const TemporaryFile file;
  bool written = false;
  CHECK(tinyqmoe::expand_to_file(*tensor, form, nullptr, fileno(file.file), &written) == TINYQMOE_OK);
  const Bytes stored = file.content(expected.size());
  CHECK(written && stored.size() == expected.size());
  std::copy_n(stored.begin() + 52, 4, memory.begin() + 52);  // the CRC, which memory lacks,
  std::copy_n(stored.begin() + 60, 4, memory.begin() + 60);  // and that of the header
  CHECK(memory == stored);
  tinyqmoe_tensor* copy = nullptr;
  CHECK(tinyqmoe::open_copy(stored.data(), stored.size(), TINYQMOE_VERIFY_PAYLOAD, &copy) == TINYQMOE_OK);
  tinyqmoe_close(copy);
}

void test_acquired() {
  g_context = "a copy that a host's threads make";
  Random random(5);
  const Spec& spec = kSpecs[1];
  const Levels levels = random_levels(spec, random);
  const Bytes blob = make_blob(spec, levels, random);
  Tensor tensor;
  CHECK(open(blob, 0, &tensor) == TINYQMOE_OK);
  tinyqmoe_set_budget(UINT64_MAX);
  Threads host;
  tinyqmoe_form* form = nullptr;
  CHECK(tinyqmoe_acquire_with_threads(tensor.get(), &host.threads, &form) == TINYQMOE_OK && host.n_parts > 2);
  Levels decoded(levels.size());
  CHECK(tinyqmoe_form_tensor(form) != tensor.get());
  CHECK(tinyqmoe_decode_rows(tinyqmoe_form_tensor(form), 0, spec.rows, TINYQMOE_ISA_AUTO, decoded.data()) ==
        TINYQMOE_OK);
  CHECK(decoded == levels);
  tinyqmoe_release(form);
  tinyqmoe_set_budget(0);
}

void test_packing() {
  Random random(6);
  for (const tinyqmoe_isa isa : available_isas()) {
    for (const uint32_t bits : {2u, 4u}) {
      g_context = "packing, isa " + std::to_string(isa) + ", bits " + std::to_string(bits);
      for (uint32_t n = 0; n < 400; n += 4) {
        Bytes offsets(n), packed(n * bits / 8), unpacked(n);
        for (uint8_t& offset : offsets) offset = static_cast<uint8_t>(random() % (1u << bits));
        tinyqmoe::kernels_for(isa)->pack(offsets.data(), n, bits, packed.data());
        tinyqmoe::scalar_kernels()->unpack(packed.data(), bits, n, 0, unpacked.data());
        CHECK(unpacked == offsets);
      }
    }
  }
}

}  // namespace

void test_expansion() {
  test_packing();
  test_copies();
  test_what_fails();
  for (const Form form : kClippedForms) test_clipped_copies(form);
  test_acquired();
}

}  // namespace tests
