// Takes a damaged file for the cache file of an expanded tensor: it is replaced or believed, and what is multiplied has
// the right levels.
//
// The input is what is wrong with a good file: its bytes are XORed into that, which is cut or made longer to their
// number. There is a file in each form. Seeds: zeros.
#include <cstring>
#include <filesystem>
#include <fstream>

#include "cache_file.h"
#include "pages.h"
#include "support.h"
#include "target.h"

namespace {

using namespace tests;
using tinyqmoe::FileResult;
using tinyqmoe::Form;
using tinyqmoe::MappedCopy;

Levels levels_of(const tinyqmoe_tensor* tensor) {
  tinyqmoe_info info;
  tinyqmoe_get_info(tensor, &info);
  Levels levels(size_t{info.rows} * info.cols);
  const tinyqmoe_status status = tinyqmoe_decode_rows(tensor, 0, info.rows, TINYQMOE_ISA_SCALAR, levels.data());
  expect(status == TINYQMOE_OK, "a copy that was checked does not decode");
  return levels;
}

void write_file(const char* path, const Bytes& bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

// A coded tensor, and the folder with the file of its expanded copy.
class Cache {
 public:
  explicit Cache(Form form) : form_(form) {
    Random random(5);
    const Spec spec = {1, 12, 6, -33, 67, 5, 50};
    levels_ = form == Form::kRaw ? random_levels(spec, random) : levels_with_exceptions(spec, tinyqmoe::clipped_bits(form), 100, random);
    blob_ = make_blob(spec, levels_, random);
    expect(tests::open(blob_, TINYQMOE_VERIFY_PAYLOAD, &tensor_) == TINYQMOE_OK, "the tensor does not open");
    folder_ = (std::filesystem::temp_directory_path() / "fuzz_cache_file.XXXXXX").string();
    expect(mkdtemp(folder_.data()) != nullptr, "no folder can be made");
    tinyqmoe::cache_path(folder_.c_str(), *tensor_, path_);
    expect(use(true), "there was a file before the first one");
    good_ = read_file(path_);
  }

  ~Cache() { std::filesystem::remove_all(folder_); }

  const Bytes& good() const { return good_; }

  // Whether the file was written again.
  bool use(const Bytes& bytes, bool same_levels) {
    write_file(path_, bytes);
    return use(same_levels);
  }

 private:
  bool use(bool same_levels) {
    MappedCopy copy = {};
    bool wrote = false;
    const FileResult result = tinyqmoe::open_cached(*tensor_, form_, nullptr, path_, &copy, &wrote);
    expect(result == FileResult::kMapped, "no copy is to be had");
    const Levels levels = levels_of(copy.tensor);
    expect(!same_levels || levels == levels_, "a copy has other levels");
    tinyqmoe_close(copy.tensor);
    tinyqmoe::unmap(copy.bytes, copy.n_bytes);
    return wrote;
  }

  Form form_;
  Levels levels_;
  Bytes blob_, good_;
  Tensor tensor_;
  std::string folder_;
  char path_[tinyqmoe::kMaxPath];
};

bool try_input(Cache* cache, const uint8_t* data, size_t size) {
  Bytes damaged = cache->good();
  damaged.resize(size);
  for (size_t i = 0; i < size; ++i) damaged[i] ^= data[i];
  const bool good = damaged == cache->good();
  expect(cache->use(damaged, true) == !good, "a good file is replaced, or a damaged one is not");
  // Right CRCs, and one reads on. Nothing then tells such a file from a good one, so it may have any levels.
  reseal(&damaged);
  cache->use(damaged, false);
  return good;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static Cache caches[] = {Cache(Form::kRaw), Cache(Form::kClipped4), Cache(Form::kClipped5), Cache(Form::kClipped6)};
  bool good = false;
  for (Cache& cache : caches) good |= try_input(&cache, data, size);
  tests::accepted() += good;
  return 0;
}
