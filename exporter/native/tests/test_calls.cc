// Arguments that are wrong, CRC-32, counting, the encoder's errors, and shared dictionaries.
#include <array>
#include <cstring>
#include <numeric>
#include <set>
#include <string>

#include "check.h"
#include "crc32.h"
#include "kernels.h"
#include "support.h"
#include "tensor.h"
#include "tests.h"
#include "threads.h"

namespace tests {
namespace {

const Spec kSpec = {1, 12, 6, -1, 3, 40, 100};
constexpr tinyqmoe_scale_type kFloats = TINYQMOE_SCALES_FLOAT32;

uint32_t crc32_bit_by_bit(const Bytes& bytes) {
  uint32_t crc = 0xFFFFFFFFu;
  for (const uint8_t byte : bytes) {
    crc ^= byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? 0xEDB88320u : 0u);
  }
  return ~crc;
}

void test_crc() {
  g_context = "crc32";
  CHECK(tinyqmoe_crc32(0, "123456789", 9) == 0xCBF43926u);
  CHECK(tinyqmoe_crc32(0, nullptr, 0) == 0);
  Random random(5);
  for (size_t n = 0; n < 300; n += n < 70 ? 1 : 23) {
    Bytes bytes(n);
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
    CHECK(crc32_of(bytes) == crc32_bit_by_bit(bytes));
    const uint32_t first = tinyqmoe_crc32(0, bytes.data(), n / 3);
    CHECK(tinyqmoe_crc32(first, bytes.data() + n / 3, n - n / 3) == crc32_of(bytes));
    const uint32_t second = tinyqmoe_crc32(0, bytes.data() + n / 3, n - n / 3);
    CHECK(tinyqmoe::crc_of_both(first, second, n - n / 3) == crc32_of(bytes));
  }
}

#if defined(__x86_64__)
// A machine that has AVX-512 without VBMI takes base-3 rows as AVX2 does, and all else as any.
void test_kernels_without_vbmi() {
  g_context = "kernels without VBMI";
  const tinyqmoe::Kernels& with = *tinyqmoe::avx512_kernels(true);
  const tinyqmoe::Kernels& without = *tinyqmoe::avx512_kernels(false);
  CHECK(with.dot_base3 != without.dot_base3);
  CHECK(without.dot_base3 == tinyqmoe::avx2_kernels()->dot_base3);
  CHECK(with.dot == without.dot && with.dot_packed == without.dot_packed && with.dot_batch == without.dot_batch);
}
#endif

void test_status_names() {
  g_context = "names";
  CHECK(tinyqmoe_abi_version() == TINYQMOE_ABI_VERSION);
  CHECK(std::strcmp(tinyqmoe_status_name(TINYQMOE_BAD_ROW_LENGTH), "BAD_ROW_LENGTH") == 0);
  std::set<std::string> names;
  for (int status = 0; status < 128; ++status) names.insert(tinyqmoe_status_name(static_cast<tinyqmoe_status>(status)));
  const int of_bytes = TINYQMOE_BAD_LEVEL + 1, of_calls = TINYQMOE_NO_ISA - TINYQMOE_BAD_ARGUMENT + 1;
  CHECK(static_cast<int>(names.size()) == of_bytes + of_calls + 1);  // each its own, and one for all other numbers
  CHECK(std::strcmp(tinyqmoe_status_name(static_cast<tinyqmoe_status>(999)), "UNKNOWN") == 0);
}

tinyqmoe_isa missing_isa() {
#if defined(__x86_64__)
  return TINYQMOE_ISA_NEON;
#else
  return TINYQMOE_ISA_AVX2;
#endif
}

void test_open_arguments(const Bytes& blob) {
  g_context = "open";
  tinyqmoe_tensor* tensor = nullptr;
  CHECK(tinyqmoe_open(nullptr, 100, 0, &tensor) == TINYQMOE_BAD_ARGUMENT);
  CHECK(tinyqmoe_open(blob.data(), blob.size(), 8, &tensor) == TINYQMOE_BAD_ARGUMENT);
  CHECK(tinyqmoe_open(blob.data(), blob.size(), 0, nullptr) == TINYQMOE_BAD_ARGUMENT);
  for (size_t n = 0; n < blob.size(); ++n) {
    const Bytes cut(blob.begin(), blob.begin() + static_cast<std::ptrdiff_t>(n));
    Tensor out;
    CHECK(open(cut, 0, &out) == TINYQMOE_TRUNCATED && out == nullptr);
  }
  Bytes longer = blob;
  longer.resize(blob.size() + 5, 0xAA);
  Tensor out;
  CHECK(open(longer, TINYQMOE_VERIFY_PAYLOAD, &out) == TINYQMOE_OK);
  tinyqmoe_close(nullptr);
}

void test_row_arguments(const tinyqmoe_tensor* tensor) {
  g_context = "rows";
  Levels levels(size_t{kSpec.rows} * kSpec.cols);
  const tinyqmoe_isa any = TINYQMOE_ISA_AUTO;
  CHECK(tinyqmoe_decode_rows(nullptr, 0, 1, any, levels.data()) == TINYQMOE_BAD_ARGUMENT);
  CHECK(tinyqmoe_decode_rows(tensor, 2, 1, any, levels.data()) == TINYQMOE_BAD_ARGUMENT);
  CHECK(tinyqmoe_decode_rows(tensor, 0, kSpec.rows + 1, any, levels.data()) == TINYQMOE_BAD_ARGUMENT);
  CHECK(tinyqmoe_decode_rows(tensor, 0, 1, any, nullptr) == TINYQMOE_BAD_ARGUMENT);
  CHECK(tinyqmoe_decode_rows(tensor, 0, 1, missing_isa(), levels.data()) == TINYQMOE_NO_ISA);
  CHECK(tinyqmoe_decode_rows(tensor, 3, 3, any, nullptr) == TINYQMOE_OK);
  const Floats scales(kSpec.rows, 1.0f);
  Floats out(kSpec.cols);
  for (const int64_t id : {int64_t{-1}, int64_t{kSpec.rows}, INT64_MIN, INT64_MAX}) {
    const tinyqmoe_embedding_args args = {tensor, scales.data(), kFloats, kSpec.cols, any, &id, 1, out.data()};
    CHECK(tinyqmoe_embedding(&args) == TINYQMOE_BAD_ID);
  }
  const int64_t zero = 0;
  const tinyqmoe_embedding_args no_group = {tensor, scales.data(), kFloats, 0, any, &zero, 1, out.data()};
  CHECK(tinyqmoe_embedding(&no_group) == TINYQMOE_BAD_ARGUMENT);
  CHECK(tinyqmoe_embedding(nullptr) == TINYQMOE_BAD_ARGUMENT);
}

void test_linear_arguments(const tinyqmoe_tensor* tensor) {
  g_context = "linear";
  alignas(64) static uint8_t scratch[1 << 17];
  const uint64_t needed = tinyqmoe_linear_scratch_bytes(tensor, 1);
  CHECK(needed <= sizeof scratch);
  const Floats scales(kSpec.rows, 1.0f);
  const Quantized x(kSpec.cols, 1);
  std::memset(x.bytes(), 0, tinyqmoe_quantized_bytes(kSpec.cols));
  const float x_scale = 1.0f;
  Floats y(kSpec.rows);
  const auto call = [&](uint32_t group, uint32_t begin, uint32_t end, tinyqmoe_isa isa, void* space, uint64_t bytes) {
    const tinyqmoe_linear_args args = {tensor, scales.data(), kFloats, group, 1, begin, end, isa, space, bytes,
                                       y.data()};
    return tinyqmoe_linear_x16(&args, x.bytes(), &x_scale);
  };
  const tinyqmoe_isa any = TINYQMOE_ISA_AUTO;
  CHECK(call(100, 0, kSpec.rows, any, scratch, needed) == TINYQMOE_OK);
  CHECK(call(100, 5, 5, any, scratch, needed) == TINYQMOE_OK);
  CHECK(call(100, 0, kSpec.rows, any, scratch, needed - 1) == TINYQMOE_BUFFER_TOO_SMALL);
  CHECK(call(100, 0, kSpec.rows, any, scratch + 1, needed) == TINYQMOE_BAD_ARGUMENT);
  CHECK(call(100, 0, kSpec.rows, any, nullptr, needed) == TINYQMOE_BAD_ARGUMENT);
  CHECK(call(0, 0, kSpec.rows, any, scratch, needed) == TINYQMOE_BAD_ARGUMENT);
  CHECK(call(100, 0, kSpec.rows + 1, any, scratch, needed) == TINYQMOE_BAD_ARGUMENT);
  CHECK(call(100, 0, kSpec.rows, missing_isa(), scratch, needed) == TINYQMOE_NO_ISA);
  CHECK(tinyqmoe_linear_x16(nullptr, x.bytes(), &x_scale) == TINYQMOE_BAD_ARGUMENT);
  const tinyqmoe_linear_args args = {tensor, scales.data(), kFloats, 100, 1, 0, kSpec.rows, any, scratch, needed,
                                     y.data()};
  CHECK(tinyqmoe_linear_x16(&args, static_cast<char*>(x.bytes()) + 2, &x_scale) == TINYQMOE_BAD_ARGUMENT);
  CHECK(tinyqmoe_linear_x16(&args, x.bytes(), nullptr) == TINYQMOE_BAD_ARGUMENT);
}

void test_counts() {
  g_context = "counts";
  Levels levels;
  std::array<uint64_t, 256> expected{};
  for (int v = -128; v < 128; ++v) {
    levels.insert(levels.end(), static_cast<size_t>(v + 130), static_cast<int8_t>(v));
    expected[static_cast<size_t>(v + 128)] = static_cast<uint64_t>(v + 130);
  }
  std::array<uint64_t, 256> counts;
  counts.fill(7);
  CHECK(tinyqmoe_count_levels(levels.data(), levels.size(), counts.data()) == TINYQMOE_OK && counts == expected);
  CHECK(tinyqmoe_count_levels(nullptr, 0, counts.data()) == TINYQMOE_OK && counts[128] == 0);
  CHECK(tinyqmoe_count_levels(nullptr, 1, counts.data()) == TINYQMOE_BAD_ARGUMENT);
}

void test_encoder() {
  g_context = "encode";
  Random random(3);
  const RandomDictionary made = random_dictionary(kSpec, random);
  Levels levels = random_levels(kSpec, random);
  std::vector<uint32_t> row_bytes(kSpec.rows);
  uint64_t bytes = 0;
  const Bytes& section = made.section;
  const auto encode = [&](const Bytes& dictionary, uint8_t* payload, uint64_t capacity) {
    const tinyqmoe_encode_args args = {levels.data(), kSpec.rows, kSpec.cols, -1, 3, 12, payload, capacity};
    tinyqmoe_encode_dictionary tables = made.of(kSpec);
    tables.bytes = dictionary.data();
    tables.n_bytes = dictionary.size();
    return tinyqmoe_encode_lzw(&args, &tables, row_bytes.data(), &bytes);
  };
  const auto count = [&](uint64_t* counts) {
    const tinyqmoe_encode_args args = {levels.data(), kSpec.rows, kSpec.cols, -1, 3, 12, nullptr, 0};
    const tinyqmoe_encode_dictionary tables = made.of(kSpec);
    return tinyqmoe_count_phrases(&args, &tables, counts);
  };
  std::vector<uint64_t> counts(made.n_entries, 7);
  CHECK(count(counts.data()) == TINYQMOE_OK && count(nullptr) == TINYQMOE_BAD_ARGUMENT);
  const uint64_t n_phrases = std::accumulate(counts.begin(), counts.end(), uint64_t{0});
  CHECK(n_phrases >= levels.size() / kSpec.cap && n_phrases <= levels.size());
  CHECK(encode(section, nullptr, 0) == TINYQMOE_OK && bytes > 0);
  const uint64_t exact = bytes;
  Bytes payload(exact);
  CHECK(encode(section, payload.data(), exact) == TINYQMOE_OK && bytes == exact);
  CHECK(encode(section, payload.data(), exact - 1) == TINYQMOE_BUFFER_TOO_SMALL);
  CHECK(std::accumulate(row_bytes.begin(), row_bytes.end(), uint64_t{0}) == exact);
  Bytes broken = section;
  broken[0] ^= 1;
  CHECK(encode(broken, payload.data(), exact) == TINYQMOE_BAD_DICTIONARY);
  broken.pop_back();
  CHECK(encode(broken, payload.data(), exact) == TINYQMOE_BAD_DICTIONARY);
  levels[kSpec.cols * 7] = 2;
  CHECK(encode(section, payload.data(), exact) == TINYQMOE_BAD_LEVEL);
  Bytes raw(size_t{kSpec.rows} * 25);
  const auto pack = [&](uint32_t bits, uint64_t capacity) {
    const tinyqmoe_encode_args args = {levels.data(), kSpec.rows, kSpec.cols, -1, 3, bits, raw.data(), capacity};
    return tinyqmoe_encode_raw(&args);
  };
  CHECK(pack(2, raw.size()) == TINYQMOE_BAD_LEVEL);
  levels[kSpec.cols * 7] = 1;
  CHECK(pack(2, raw.size()) == TINYQMOE_OK);
  CHECK(pack(2, raw.size() - 1) == TINYQMOE_BUFFER_TOO_SMALL);
  CHECK(pack(3, raw.size()) == TINYQMOE_BAD_CODEC);
  const auto pack3 = [&](uint32_t n_levels, uint64_t capacity) {
    const tinyqmoe_encode_args args = {levels.data(), kSpec.rows, kSpec.cols, -1, n_levels, 0, raw.data(), capacity};
    return tinyqmoe_encode_base3(&args);
  };
  CHECK(pack3(3, kSpec.rows * 20) == TINYQMOE_OK && pack3(3, kSpec.rows * 20 - 1) == TINYQMOE_BUFFER_TOO_SMALL);
  CHECK(pack3(2, raw.size()) == TINYQMOE_BAD_ALPHABET);
  levels[kSpec.cols * 7] = 2;
  CHECK(pack3(3, raw.size()) == TINYQMOE_BAD_LEVEL);
}

void test_sharing(const Bytes& blob) {
  g_context = "sharing";
  Tensor a;
  Tensor b;
  CHECK(open(blob, 0, &a) == TINYQMOE_OK && open(blob, 0, &b) == TINYQMOE_OK);
  const uint32_t references = b->dictionary->references;
  CHECK(a->dictionary == b->dictionary && references >= 2);
  a.reset();
  CHECK(b->dictionary->references == references - 1);
  std::vector<tinyqmoe::Thread> threads;
  for (int k = 0; k < 4; ++k) {
    threads.emplace_back([&blob] {
      for (int i = 0; i < 50; ++i) {
        Tensor tensor;
        open(blob, 0, &tensor);
      }
    });
  }
  for (tinyqmoe::Thread& thread : threads) thread.join();
  CHECK(b->dictionary->references == references - 1);
}

}  // namespace

void test_calls() {
  Random random(2);
  const Bytes blob = make_blob(kSpec, random_levels(kSpec, random), random);
  Tensor tensor;
  CHECK(open(blob, TINYQMOE_VERIFY_PAYLOAD, &tensor) == TINYQMOE_OK);
  test_crc();
#if defined(__x86_64__)
  test_kernels_without_vbmi();
#endif
  test_status_names();
  test_open_arguments(blob);
  test_row_arguments(tensor.get());
  test_linear_arguments(tensor.get());
  test_counts();
  test_encoder();
  test_sharing(blob);
}

}  // namespace tests
