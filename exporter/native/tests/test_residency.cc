// Residency: the same bits in every mode, budgets that hold, files that are checked, and threads that change all of it.
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <thread>

#include "check.h"
#include "expand.h"
#include "no_destroy.h"
#include "pages.h"
#include "support.h"
#include "tensor.h"
#include "tests.h"

namespace tests {
namespace {

struct Release {
  void operator()(tinyqmoe_form* form) const { tinyqmoe_release(form); }
};
using Form = std::unique_ptr<tinyqmoe_form, Release>;

Form acquire(const tinyqmoe_tensor* tensor) {
  tinyqmoe_form* form = nullptr;
  CHECK(tinyqmoe_acquire(tensor, &form) == TINYQMOE_OK && form != nullptr);
  return Form(form);
}

tinyqmoe_residency_stats stats() {
  tinyqmoe_residency_stats out{};
  out.struct_bytes = sizeof out;
  CHECK(tinyqmoe_stats(&out) == TINYQMOE_OK);
  return out;
}

void reset() {
  tinyqmoe_set_budget(0);
  tinyqmoe_set_clean_budget(UINT64_MAX);
  CHECK(tinyqmoe_set_cache_dir(nullptr) == TINYQMOE_OK);
  CHECK(stats().dirty_bytes == 0 && stats().file_bytes == 0);
}

// A folder that is gone with its files when the test ends.
struct Folder {
  std::string path;

  Folder() {
    const char* parent = std::getenv("TMPDIR");
    path = std::string(parent == nullptr ? "/tmp" : parent) + "/tinyqmoe-residency-XXXXXX";
    if (mkdtemp(path.data()) == nullptr) throw std::runtime_error("no temporary folder");
  }
  ~Folder() {
    const int removed = std::system(("rm -rf '" + path + "'").c_str());
    CHECK(removed == 0);
  }
};

// A tensor with one product, to see that its bits stay.
struct Model {
  Spec spec;
  Bytes blob;
  Tensor tensor;
  Floats x;
  Floats scales;
  uint32_t group_size;
  uint32_t expected_x16;
  uint32_t expected_f32;

  Model(const Spec& s, uint32_t group, uint32_t seed, const Levels& levels = {})
      : spec(s), group_size(std::min(group, s.cols)) {
    Random random(seed);
    blob = make_blob(spec, levels.empty() ? random_levels(spec, random) : levels, random);
    CHECK(open(blob, 0, &tensor) == TINYQMOE_OK);
    std::normal_distribution<float> normal;
    x.resize(size_t{2} * spec.cols);
    scales.resize(size_t{spec.rows} * ((spec.cols + group_size - 1) / group_size));
    for (float& value : x) value = normal(random);
    for (float& value : scales) value = normal(random);
    expected_x16 = crc32_of(linear_x16(tensor.get(), x, scales, group_size, 2, TINYQMOE_ISA_AUTO).y);
    expected_f32 = crc32_of(linear_f32(tensor.get(), x, scales, group_size, 2, TINYQMOE_ISA_AUTO).y);
  }

  uint64_t form_bytes() const {
    tinyqmoe_info info;
    tinyqmoe_get_info(tensor.get(), &info);
    const uint64_t page = tinyqmoe::page_bytes();
    return (tinyqmoe::form_bytes(info, tinyqmoe::form_of(info)) + page - 1) / page * page;
  }

  // Whether the product, through the manager, has the bits it should have.
  bool multiplies() const {
    const Form form = acquire(tensor.get());
    const tinyqmoe_tensor* with = tinyqmoe_form_tensor(form.get());
    return crc32_of(linear_x16(with, x, scales, group_size, 2, TINYQMOE_ISA_AUTO).y) == expected_x16 &&
           crc32_of(linear_f32(with, x, scales, group_size, 2, TINYQMOE_ISA_AUTO).y) == expected_f32;
  }

  bool is_expanded() const {
    const Form form = acquire(tensor.get());
    return tinyqmoe_form_tensor(form.get()) != tensor.get();
  }

  bool is_refused() const {
    tinyqmoe_form* form = nullptr;
    return tinyqmoe_acquire(tensor.get(), &form) == TINYQMOE_BAD_PAYLOAD_CRC && form == nullptr;
  }
};

const Spec kTernary = {1, 12, 14, -1, 3, 40, 300};
const Spec kSpecs[] = {
    kTernary,
    {2, 8, 5, -1, 3, 33, 43},
    {1, 12, 6, -1, 3, 5, 2048},
    {1, 12, 3, 0, 2, 7, 129},
    {1, 12, 6, -16, 33, 6, 500, 9},
    {1, 12, 6, -7, 15, 9, 301},
    {1, 12, 3, -128, 256, 5, 300, 31},
    {1, 12, 14, -1, 3, 31, 1},
    {2, 8, 5, -1, 3, 5, 2048},
};

void test_same_bits() {
  for (const Spec& spec : kSpecs) {
    for (const uint32_t group : {spec.cols, 128u, 43u}) {
      g_context = "residency " + spec.name() + " group " + std::to_string(group);
      const Folder folder;
      const Model model(spec, group, 7);
      CHECK(model.multiplies() && !model.is_expanded());
      tinyqmoe_set_budget(UINT64_MAX);
      CHECK(model.multiplies() && model.is_expanded());
      CHECK(stats().dirty_bytes == model.form_bytes());
      CHECK(tinyqmoe_set_cache_dir(folder.path.c_str()) == TINYQMOE_OK);
      tinyqmoe_set_budget(0);
      CHECK(stats().dirty_bytes == 0);
      CHECK(model.multiplies() && model.is_expanded());
      CHECK(stats().dirty_bytes == 0 && stats().file_bytes > 0 && stats().tensors_from_file == 1);
      // The form is the tensor: its rows decode to the same levels.
      const Form form = acquire(model.tensor.get());
      Levels coded(size_t{spec.rows} * spec.cols);
      Levels raw(coded.size());
      CHECK(tinyqmoe_decode_rows(model.tensor.get(), 0, spec.rows, TINYQMOE_ISA_AUTO, coded.data()) == TINYQMOE_OK);
      CHECK(tinyqmoe_decode_rows(tinyqmoe_form_tensor(form.get()), 0, spec.rows, TINYQMOE_ISA_AUTO, raw.data()) ==
            TINYQMOE_OK);
      CHECK(coded == raw);
      tinyqmoe_set_cache_dir(nullptr);
    }
    reset();
  }
}

struct Counted {
  static inline int destroyed = 0;
  ~Counted() { ++destroyed; }
};

void test_no_destroy() {
  g_context = "a global that is never destroyed";
  { const Counted counted; }
  { const tinyqmoe::NoDestroy<Counted> kept; }
  CHECK(Counted::destroyed == 1);
}

void test_arguments() {
  g_context = "residency arguments";
  const Model model(kTernary, 300, 1);
  tinyqmoe_form* form = nullptr;
  CHECK(tinyqmoe_acquire(model.tensor.get(), nullptr) == TINYQMOE_BAD_ARGUMENT);
  CHECK(tinyqmoe_acquire(nullptr, &form) == TINYQMOE_BAD_ARGUMENT && form == nullptr);
  CHECK(tinyqmoe_stats(nullptr) == TINYQMOE_BAD_ARGUMENT);
  tinyqmoe_residency_stats out{};
  CHECK(tinyqmoe_stats(&out) == TINYQMOE_BAD_ARGUMENT);
  out.struct_bytes = 16;  // of a caller that knows two fields
  out.clean_budget_bytes = 77;
  tinyqmoe_set_budget(5);
  CHECK(tinyqmoe_stats(&out) == TINYQMOE_OK && out.budget_bytes == 5 && out.clean_budget_bytes == 77);
  CHECK(tinyqmoe_set_cache_dir(std::string(5000, 'x').c_str()) == TINYQMOE_BAD_ARGUMENT);
  tinyqmoe_release(nullptr);
  tinyqmoe_trim(1, nullptr);
  reset();
}

void test_raw_and_close() {
  g_context = "residency of a raw tensor";
  tinyqmoe_set_budget(UINT64_MAX);
  const tinyqmoe_residency_stats before = stats();
  {
    const Model raw({0, 2, 0, -1, 3, 9, 100}, 100, 3);
    CHECK(raw.multiplies() && !raw.is_expanded());
    CHECK(stats().tensors_raw == 1 && stats().products_raw == before.products_raw + 2);
    const Model coded(kTernary, 300, 3);
    Tensor again;
    CHECK(open(coded.blob, 0, &again) == TINYQMOE_OK);
    CHECK(coded.is_expanded());
    const Form form = acquire(again.get());
    CHECK(tinyqmoe_form_tensor(form.get()) == tinyqmoe_form_tensor(acquire(coded.tensor.get()).get()));
    CHECK(stats().tensors_known == 2 && stats().expansions == before.expansions + 1);
  }
  CHECK(stats().tensors_known == 0 && stats().dirty_bytes == 0);
  reset();
}

std::string only_file(const std::string& folder) {
  FILE* const names = popen(("ls -A '" + folder + "'").c_str(), "r");
  char name[4096] = {};
  const size_t n = std::fread(name, 1, sizeof name - 1, names);
  pclose(names);
  const std::string all(name, n);
  const size_t end = all.find('\n');
  return end != std::string::npos && end + 1 == all.size() ? folder + "/" + all.substr(0, end) : "";
}

void start_again(const Folder& folder) {
  CHECK(tinyqmoe_set_cache_dir(nullptr) == TINYQMOE_OK);
  CHECK(tinyqmoe_set_cache_dir(folder.path.c_str()) == TINYQMOE_OK);
}

// Of the random dictionaries the first that makes the rate of these levels one of this form.
std::unique_ptr<Model> model_of_form(const Spec& spec, const Levels& levels, tinyqmoe::Form form) {
  for (uint32_t seed = 0; seed < 1000; ++seed) {
    auto model = std::make_unique<Model>(spec, 128, seed, levels);
    if (tinyqmoe::form_of(model->tensor->info) == form) return model;
  }
  throw std::runtime_error("no dictionary has a rate of the form");
}

// Clipped levels where the rate promises few exceptions, in memory and in a file; those of more bits, or bytes, where there
// were many nevertheless. `expected` is the form for these levels, of which some are `far`.
void test_clipped_and_what_has_no_room(tinyqmoe::Form promised, tinyqmoe::Form expected, int8_t far) {
  const Spec spec = {1, 12, 14, -80, 161, 48, 400, 3};
  g_context = "residency of clipped levels with some at " + std::to_string(far);
  const Folder folder;
  Levels levels(size_t{spec.rows} * spec.cols, int8_t{1});
  for (size_t i = 0; i < levels.size(); i += expected == promised ? 197 : 7) levels[i] = i % 2 == 0 ? far : -far;
  const auto held = model_of_form(spec, levels, promised);
  const Model& model = *held;
  const tinyqmoe_info& info = model.tensor->info;
  const uint64_t page = tinyqmoe::page_bytes(), n_bytes = tinyqmoe::form_bytes(info, expected);
  tinyqmoe_set_budget(UINT64_MAX);
  for (const bool in_file : {false, true}) {
    if (in_file) start_again(folder);
    CHECK(model.multiplies() && model.is_expanded());
    const tinyqmoe_info made = tinyqmoe_form_tensor(acquire(model.tensor.get()).get())->info;
    const bool raw = expected == tinyqmoe::Form::kRaw;
    CHECK(raw ? made.codec == 0 : made.codec == 3 && made.code_bits == tinyqmoe::clipped_bits(expected));
    CHECK(in_file || stats().dirty_bytes == (n_bytes + page - 1) / page * page);
    tinyqmoe_set_budget(0);
    CHECK(stats().dirty_bytes == 0);
  }
  CHECK(stats().file_failures == 0 && read_file(only_file(folder.path)).size() == n_bytes + 64);
  const uint64_t expansions = stats().expansions;
  start_again(folder);
  CHECK(model.multiplies() && model.is_expanded() && stats().expansions == expansions);
  reset();
}

void test_budget() {
  g_context = "residency budget";
  const Spec base3 = {2, 8, 5, -1, 3, 40, 300};
  const Model first(base3, 300, 1);
  const Model second(base3, 300, 2);
  const Model better(kTernary, 300, 3);  // saves more a byte
  const uint64_t one = first.form_bytes();
  CHECK(one == second.form_bytes() && better.form_bytes() <= 2 * one);
  tinyqmoe_set_budget(one);
  for (int token = 0; token < 3; ++token) CHECK(first.is_expanded() && !second.is_expanded());
  CHECK(stats().expansions >= 1 && stats().dirty_bytes == one);
  const uint64_t expansions = stats().expansions;
  tinyqmoe_set_budget(better.form_bytes());
  CHECK(better.is_expanded());
  for (int token = 0; token < 3; ++token) CHECK(!first.is_expanded() && !second.is_expanded() && better.is_expanded());
  CHECK(stats().expansions == expansions + 1 && stats().dirty_peak_bytes >= stats().dirty_bytes);
  tinyqmoe_set_budget(better.form_bytes() + one);
  CHECK(first.multiplies() && second.multiplies() && better.multiplies());
  CHECK(first.is_expanded() && !second.is_expanded() && better.is_expanded());
  CHECK(stats().dirty_bytes == better.form_bytes() + one);
  reset();
}

void test_left_models() {
  g_context = "residency of models that are no longer run";
  const Model left(kTernary, 300, 1);
  const Model now(kTernary, 300, 2);
  tinyqmoe_set_budget(left.form_bytes());
  CHECK(left.is_expanded() && !now.is_expanded());
  tinyqmoe_set_budget(0);
  tinyqmoe_set_budget(left.form_bytes());
  CHECK(now.is_expanded() && stats().dirty_bytes == left.form_bytes());
  reset();
}

// Whichever of two tensors with one content closes first: the form stays for the other, and goes with the last.
void test_closing() {
  g_context = "residency of two tensors with one content";
  tinyqmoe_set_budget(UINT64_MAX);
  const Model model(kTernary, 300, 1);
  const uint64_t form_bytes = model.form_bytes();
  for (const bool first_goes : {true, false}) {
    Tensor first;
    Tensor second;
    const Bytes copy = model.blob;
    CHECK(open(model.blob, 0, &first) == TINYQMOE_OK && open(copy, 0, &second) == TINYQMOE_OK);
    const tinyqmoe_tensor* const form = tinyqmoe_form_tensor(acquire(first.get()).get());
    Tensor& goes = first_goes ? first : second;
    Tensor& stays = first_goes ? second : first;
    {
      const Form used = acquire(stays.get());
      CHECK(tinyqmoe_form_tensor(used.get()) == form);
      goes.reset();
      CHECK(tinyqmoe_form_tensor(acquire(stays.get()).get()) == form && stats().dirty_bytes == form_bytes);
      const Product y = linear_x16(form, model.x, model.scales, 300, 2, TINYQMOE_ISA_AUTO);
      CHECK(crc32_of(y.y) == model.expected_x16);
    }
    stays.reset();
    CHECK(stats().dirty_bytes == 0 && stats().tensors_known == 0);
  }
  reset();
}

// A form in use outlives every change of settings, and is gone when its product ends.
void test_settings_change_in_a_product() {
  const Folder folder;
  const Model model(kTernary, 300, 1);
  const auto is_right = [&](const Form& form) {
    const tinyqmoe_tensor* with = tinyqmoe_form_tensor(form.get());
    const Product y = linear_x16(with, model.x, model.scales, 300, 2, TINYQMOE_ISA_AUTO);
    return with != model.tensor.get() && crc32_of(y.y) == model.expected_x16;
  };
  g_context = "residency budget in a product";
  tinyqmoe_set_budget(UINT64_MAX);
  {
    const Form form = acquire(model.tensor.get());
    tinyqmoe_set_budget(0);
    CHECK(is_right(form) && !model.is_expanded() && stats().dirty_bytes == model.form_bytes());
    tinyqmoe_set_budget(model.form_bytes());  // the room that the old form still takes is not given twice
    CHECK(!model.is_expanded() && stats().dirty_bytes == model.form_bytes());
  }
  CHECK(stats().dirty_bytes == 0 && model.is_expanded() && stats().dirty_bytes == model.form_bytes());
  tinyqmoe_set_budget(0);
  g_context = "residency folder in a product";
  CHECK(tinyqmoe_set_cache_dir(folder.path.c_str()) == TINYQMOE_OK);
  {
    const Form form = acquire(model.tensor.get());
    const uint64_t file_bytes = stats().file_bytes;
    CHECK(tinyqmoe_set_cache_dir(nullptr) == TINYQMOE_OK);
    CHECK(is_right(form) && !model.is_expanded() && file_bytes > 0 && stats().file_bytes == file_bytes);
  }
  CHECK(stats().file_bytes == 0);
  reset();
}

void test_trim() {
  g_context = "residency trim";
  const Model first(kTernary, 300, 1);
  const Model second(kTernary, 300, 2);
  tinyqmoe_set_budget(UINT64_MAX);
  CHECK(first.is_expanded() && second.is_expanded());
  const uint64_t one = first.form_bytes();
  uint64_t freed = 0;
  {
    const Form used = acquire(second.tensor.get());
    tinyqmoe_trim(1, &freed);
    CHECK(freed == one && stats().budget_bytes == one && stats().dirty_bytes == 2 * one);
    const Product y = linear_x16(tinyqmoe_form_tensor(used.get()), second.x, second.scales, 300, 2, TINYQMOE_ISA_AUTO);
    CHECK(crc32_of(y.y) == second.expected_x16);
    CHECK(!second.is_expanded() && first.is_expanded());
  }
  CHECK(stats().dirty_bytes == one);
  CHECK(first.is_expanded() && !second.is_expanded() && second.multiplies());
  tinyqmoe_trim(UINT64_MAX, &freed);
  CHECK(freed == one && stats().dirty_bytes == 0 && stats().budget_bytes == 0);
  CHECK(first.multiplies() && !first.is_expanded());
  tinyqmoe_trim(1, &freed);
  CHECK(freed == 0);
  reset();
}

ino_t inode(const std::string& path) {
  struct stat status {};
  CHECK(stat(path.c_str(), &status) == 0);
  return status.st_ino;
}

void write_file(const std::string& path, const Bytes& bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

void test_files() {
  g_context = "residency files";
  const Folder folder;
  const Model model(kTernary, 300, 1);
  start_again(folder);
  CHECK(model.multiplies() && model.is_expanded());
  const std::string path = only_file(folder.path);
  CHECK(!path.empty());
  if (path.empty()) return;
  const ino_t written = inode(path);
  const uint64_t expansions = stats().expansions;
  start_again(folder);
  CHECK(model.multiplies() && model.is_expanded() && inode(path) == written && stats().expansions == expansions);
  const Bytes good = read_file(path);
  const Model other(kTernary, 300, 2);
  for (const size_t at : {size_t{3}, size_t{70}, good.size() - 100, good.size() - 1}) {
    g_context = "residency file damaged at " + std::to_string(at);
    tinyqmoe_set_cache_dir(nullptr);
    Bytes bad = good;
    bad[at] ^= 1;
    write_file(path, bad);
    start_again(folder);
    CHECK(model.multiplies() && model.is_expanded() && read_file(path) == good);
  }
  for (const size_t n : {size_t{0}, size_t{63}, good.size() - 1}) {
    g_context = "residency file cut to " + std::to_string(n);
    tinyqmoe_set_cache_dir(nullptr);
    write_file(path, Bytes(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(n)));
    write_file(path + ".tmp", Bytes(100));  // of a process that was killed
    start_again(folder);
    CHECK(model.multiplies() && model.is_expanded() && read_file(path) == good && only_file(folder.path) == path);
  }
  g_context = "residency file is a pipe";
  tinyqmoe_set_cache_dir(nullptr);
  CHECK(unlink(path.c_str()) == 0 && mkfifo(path.c_str(), 0600) == 0);
  start_again(folder);
  CHECK(model.multiplies() && model.is_expanded() && read_file(path) == good);
  g_context = "residency file of another tensor";
  tinyqmoe_set_cache_dir(nullptr);
  CHECK(unlink(path.c_str()) == 0);
  start_again(folder);
  CHECK(other.is_expanded());
  tinyqmoe_set_cache_dir(nullptr);
  CHECK(std::rename(only_file(folder.path).c_str(), path.c_str()) == 0);
  start_again(folder);
  CHECK(model.multiplies() && model.is_expanded() && read_file(path) == good);
  CHECK(stats().file_failures == 0);
  reset();
}

void test_file_failures() {
  g_context = "residency without a folder";
  const Model model(kTernary, 300, 1);
  CHECK(tinyqmoe_set_cache_dir("/nowhere/at/all") == TINYQMOE_OK);
  CHECK(model.multiplies() && model.multiplies() && !model.is_expanded());
  CHECK(stats().file_failures == 1 && stats().tensors_streamed == 1);
  g_context = "residency of a folder that is removed";
  {
    const Folder going;
    const Model other(kTernary, 300, 2);
    CHECK(tinyqmoe_set_cache_dir(going.path.c_str()) == TINYQMOE_OK);
    CHECK(model.is_expanded());
    CHECK(std::system(("rm -r '" + going.path + "'").c_str()) == 0);
    CHECK(model.multiplies() && model.is_expanded() && stats().file_failures == 0);  // what is mapped stays
    CHECK(other.multiplies() && other.multiplies() && !other.is_expanded() && stats().file_failures == 1);
  }
  const Folder folder;
  Model bad(kTernary, 300, 2);
  bad.blob[bad.blob.size() - 100] ^= 1;  // the last row, most likely still one
  start_again(folder);
  CHECK(bad.is_refused() && stats().file_failures == 1 && only_file(folder.path).empty());
  tinyqmoe_set_budget(UINT64_MAX);
  CHECK(bad.is_refused() && stats().dirty_bytes == 0);
  tinyqmoe_set_budget(0);
  CHECK(bad.is_refused() && stats().file_failures == 1);  // one tensor, however often
  bad.blob[bad.blob.size() - 100] ^= 1;
  tinyqmoe_set_budget(UINT64_MAX);
  CHECK(bad.is_expanded() && bad.multiplies());
  reset();
}

void test_clean_budget() {
  g_context = "residency clean budget";
  std::vector<std::unique_ptr<Model>> models;
  uint64_t total = 0;
  for (uint32_t seed = 0; seed < 8; ++seed) {
    models.push_back(std::make_unique<Model>(Spec{1, 12, 14, -1, 3, 200, 2048}, 2048, seed));
    total += models.back()->blob.size();
  }
  const auto token = [&] {
    for (const auto& model : models) CHECK(model->multiplies());
  };
  tinyqmoe_set_clean_budget(total);
  token();
  CHECK(stats().pinned_bytes == total && stats().given_back_bytes == 0);
  tinyqmoe_set_clean_budget(total * 3 / 4);
  token();
  const uint64_t given_back = stats().given_back_bytes;
  token();
  const uint64_t pinned = stats().pinned_bytes;
  CHECK(pinned > 0 && pinned < total * 3 / 4 && stats().given_back_bytes - given_back == total - pinned);
  tinyqmoe_set_clean_budget(1);
  token();
  CHECK(stats().pinned_bytes == 0);
  g_context = "residency clean budget after another model";
  for (const size_t begin : {size_t{0}, size_t{4}}) {  // two models of four; the first stays open
    uint64_t read = 0;
    for (size_t i = begin; i < begin + 4; ++i) read += models[i]->blob.size();
    tinyqmoe_set_clean_budget(read);
    for (size_t i = begin; i < begin + 4; ++i) CHECK(models[i]->multiplies());
    const uint64_t before = stats().given_back_bytes;
    for (size_t i = begin; i < begin + 4; ++i) CHECK(models[i]->multiplies());
    CHECK(stats().given_back_bytes == before);
  }
  g_context = "residency clean budget of files";
  const Folder folder;
  start_again(folder);
  tinyqmoe_set_clean_budget(total);
  token();
  token();
  CHECK(stats().pinned_bytes > 0 && stats().pinned_bytes <= total && stats().tensors_from_file == 8);
  reset();
}

// The product as it is to be done under a clean budget, block by block; and how many blocks there were.
Floats in_blocks(const Model& model, uint32_t* n_blocks) {
  const Form form = acquire(model.tensor.get());
  const tinyqmoe_tensor* with = tinyqmoe_form_tensor(form.get());
  Floats y(size_t{2} * model.spec.rows, 7.0f);
  const uint64_t scratch_bytes = (tinyqmoe_linear_scratch_bytes(with, 2) + 63) / 64 * 64;
  const std::unique_ptr<void, void (*)(void*)> scratch(std::aligned_alloc(64, scratch_bytes), std::free);
  uint32_t begin;
  uint32_t end;
  uint32_t expected_begin = 0;
  for (*n_blocks = 0; tinyqmoe_form_next_rows(form.get(), &begin, &end); ++*n_blocks) {
    CHECK(begin == expected_begin && end > begin && end <= model.spec.rows);
    CHECK(begin % 32 == 0 && (end % 32 == 0 || end == model.spec.rows));
    const tinyqmoe_linear_args args = {with, model.scales.data(), TINYQMOE_SCALES_FLOAT32, model.group_size, 2,
                                       begin, end, TINYQMOE_ISA_AUTO, scratch.get(), scratch_bytes, y.data()};
    CHECK(tinyqmoe_linear_f32(&args, model.x.data()) == TINYQMOE_OK);
    expected_begin = end;
  }
  CHECK(expected_begin == model.spec.rows);
  CHECK(!tinyqmoe_form_next_rows(form.get(), &begin, &end));
  return y;
}

// One tensor is larger than the budget: a part of it stays.
void test_blocks() {
  const Spec specs[] = {{1, 12, 14, -1, 3, 1211, 2048}, {0, 2, 0, -1, 3, 1211, 2048}, {0, 8, 0, -128, 256, 257, 4096}};
  for (const Spec& spec : specs) {
    g_context = "residency blocks " + spec.name();
    const Model model(spec, 2048, 1);
    const Model other(kTernary, 300, 2);
    const uint64_t total = model.blob.size() + other.blob.size();
    uint32_t n_blocks = 0;
    CHECK(crc32_of(in_blocks(model, &n_blocks)) == model.expected_f32 && n_blocks == 1);
    const uint64_t page = tinyqmoe::page_bytes();
    for (const uint64_t budget : {uint64_t{0}, uint64_t{1}, total / 2, total - 1, total}) {
      tinyqmoe_set_clean_budget(budget);
      for (int token = 0; token < 3; ++token) {
        const uint64_t before = stats().given_back_bytes;
        CHECK(crc32_of(in_blocks(model, &n_blocks)) == model.expected_f32);
        CHECK(other.multiplies());
        const tinyqmoe_residency_stats now = stats();
        CHECK(now.pinned_bytes <= budget);
        if (token == 0) continue;  // until both are known, what is known may fit
        CHECK(now.given_back_bytes - before == total - now.pinned_bytes);
        CHECK((n_blocks == 1) == (budget == total));
        const uint64_t passage = budget == total ? 0 : 3 * 65536;
        CHECK(now.pinned_bytes + passage + 2 * page >= std::min(budget, total) || budget < passage);
      }
    }
    tinyqmoe_set_clean_budget(0);
    {
      const uint64_t before = stats().given_back_bytes;
      const Form form = acquire(model.tensor.get());  // a product that fails after its first block
      uint32_t begin;
      uint32_t end;
      CHECK(tinyqmoe_form_next_rows(form.get(), &begin, &end) && end < spec.rows);
      CHECK(stats().given_back_bytes == before);
    }
    CHECK(in_blocks(model, &n_blocks).size() > 0);
    reset();
  }
}

void test_threads() {
  g_context = "residency threads";
  const Folder folder;
  std::vector<std::unique_ptr<Model>> models;
  for (uint32_t seed = 0; seed < 4; ++seed) models.push_back(std::make_unique<Model>(kTernary, 300, seed));
  std::atomic<bool> done{false};
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int k = 0; k < 2; ++k) {
    threads.emplace_back([&] {
      for (int token = 0; token < 60; ++token) {
        for (const auto& model : models) {
          tinyqmoe_form* form = nullptr;
          if (tinyqmoe_acquire(model->tensor.get(), &form) != TINYQMOE_OK) ++wrong;
          const Product y = linear_x16(tinyqmoe_form_tensor(form), model->x, model->scales, model->group_size, 2,
                                        TINYQMOE_ISA_AUTO);
          wrong += crc32_of(y.y) != model->expected_x16;
          tinyqmoe_release(form);
        }
      }
      done = true;
    });
  }
  threads.emplace_back([&] {
    for (uint64_t i = 0; !done; ++i) {
      uint64_t freed;
      tinyqmoe_set_budget(i % 3 == 0 ? UINT64_MAX : i % 3 * models[0]->form_bytes());
      if (i % 4 == 1) tinyqmoe_trim(i % 8 * models[0]->form_bytes(), &freed);
      if (i % 50 == 7) tinyqmoe_set_cache_dir(i % 100 == 7 ? folder.path.c_str() : nullptr);
      tinyqmoe_set_clean_budget(i % 5 == 0 ? UINT64_MAX : i % 5 * 10000);
      std::this_thread::yield();
    }
  });
  const Bytes passing_blobs[2] = {models[0]->blob, Model(kTernary, 300, 77).blob};  // known to the others, and not
  threads.emplace_back([&] {
    for (size_t i = 0; !done; ++i) {
      tinyqmoe_residency_stats out{};
      out.struct_bytes = sizeof out;
      wrong += tinyqmoe_stats(&out) != TINYQMOE_OK || out.tensors_known > 5 || out.dirty_bytes > 100 << 20;
      Tensor passing;
      wrong += open(passing_blobs[i % 2], 0, &passing) != TINYQMOE_OK;
      tinyqmoe_form* form = nullptr;
      wrong += tinyqmoe_acquire(passing.get(), &form) != TINYQMOE_OK;
      tinyqmoe_release(form);
      passing.reset();
      std::this_thread::yield();
    }
  });
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
  reset();
}

}  // namespace

void test_residency_of_threads() {
  reset();
  test_threads();
}

void test_residency() {
  reset();
  test_no_destroy();
  test_arguments();
  test_same_bits();
  test_raw_and_close();
  using tinyqmoe::Form;
  test_clipped_and_what_has_no_room(Form::kClipped4, Form::kClipped4, 60);
  test_clipped_and_what_has_no_room(Form::kClipped5, Form::kClipped5, 60);
  test_clipped_and_what_has_no_room(Form::kClipped4, Form::kClipped5, 12);
  test_clipped_and_what_has_no_room(Form::kClipped4, Form::kClipped6, 20);
  test_clipped_and_what_has_no_room(Form::kClipped4, Form::kRaw, 60);
  test_budget();
  test_left_models();
  test_closing();
  test_settings_change_in_a_product();
  test_trim();
  test_files();
  test_file_failures();
  test_clean_budget();
  test_blocks();
  test_threads();
}

}  // namespace tests
