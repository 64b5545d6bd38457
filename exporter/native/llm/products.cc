// Products with 16-bit activations: x16 of tinyqmoe.h.
#include "products.h"

#include <algorithm>
#include <cstdlib>

#include "bytes.h"
#include "residency.h"
#include "tinyqmoe/llm.h"

namespace tinyqmoe {
namespace {

constexpr uint32_t kPieces = 3;    // a thread: few, as each call packs the activations anew
constexpr uint32_t kMinRows = 32;  // a piece
constexpr uint32_t kUnit = 16;     // pieces are multiples of it: rows whose exceptions or levels lie together

}  // namespace

Buffer::~Buffer() { std::free(data_); }

bool Buffer::reserve(uint64_t n_bytes) {
  if (n_bytes <= size_) return true;
  if (n_bytes > SIZE_MAX - 63) return false;  // of 32-bit systems
  std::free(data_);
  size_ = round_up(n_bytes, 64);
  data_ = std::aligned_alloc(64, size_);
  if (data_ == nullptr) size_ = 0;
  return data_ != nullptr;
}

tinyqmoe_status Products::prepare(std::vector<const Matrix*> matrices) {
  for (const Matrix* matrix : matrices) {
    const tinyqmoe_status status = announce(*matrix->tensor);
    if (status != TINYQMOE_OK) return status;
  }
  // The largest first, so that threads finish together.
  std::sort(matrices.begin(), matrices.end(), [](const Matrix* a, const Matrix* b) {
    return uint64_t{a->rows} * a->cols > uint64_t{b->rows} * b->cols;
  });
  loops_->run(matrices.size(), 1, [&](uint64_t begin, uint64_t end, uint32_t) {
    for (uint64_t i = begin; i < end; ++i) expand(*matrices[i]->tensor);
  });
  return TINYQMOE_OK;
}

// Matrices that can be read whole share one loop, so that threads wait for each other once. Where a matrix comes in
// blocks of rows, each block is multiplied before the next is asked for: its pages are evicted then.
tinyqmoe_status Products::multiply(const Input& input, const Product* products, uint32_t n_products) {
  tinyqmoe_status status = input.in_int16 ? quantize(input, products[0].matrix->cols) : TINYQMOE_OK;
  for (uint32_t i = 0; i < n_products && status == TINYQMOE_OK; ++i) status = add_product(input, products[i]);
  if (status == TINYQMOE_OK) status = multiply_parts(input);
  parts_.clear();
  waiting_.clear();
  return status;
}

tinyqmoe_status Products::add_product(const Input& input, const Product& product) {
  const tinyqmoe_threads threads = loops_->threads();
  tinyqmoe_form* form = nullptr;
  tinyqmoe_status status = tinyqmoe_acquire_with_threads(product.matrix->tensor, &threads, &form);
  waiting_.emplace_back(form, tinyqmoe_release);
  Part part = {&product, nullptr, 0, 0};
  while (status == TINYQMOE_OK && tinyqmoe_form_next_rows(form, &part.begin, &part.end)) {
    part.tensor = tinyqmoe_form_tensor(form);
    parts_.push_back(part);
    if (part.end - part.begin == product.matrix->rows) continue;
    status = multiply_parts(input);
    parts_.clear();
  }
  if (parts_.empty()) waiting_.clear();
  return status;
}

tinyqmoe_status Products::quantize(const Input& input, uint32_t cols) {
  const uint64_t token_bytes = tinyqmoe_quantized_bytes(cols);
  if (!quantized_.reserve(input.n_tokens * token_bytes) || !x_scales_.reserve(input.n_tokens * sizeof(float))) {
    return TINYQMOE_OUT_OF_MEMORY;
  }
  uint8_t* const quantized = static_cast<uint8_t*>(quantized_.data());
  float* const x_scales = static_cast<float*>(x_scales_.data());
  Failure failure;
  loops_->run(input.n_tokens, 4, [&](uint64_t begin, uint64_t end, uint32_t) {
    failure.note(tinyqmoe_quantize_x16(input.x + begin * cols, static_cast<uint32_t>(end - begin), cols, isa_,
                                       quantized + begin * token_bytes, x_scales + begin));
  });
  return failure.status();
}

// One loop over the rows of all parts that wait, which lie one after the other in it, each from a multiple of kUnit on.
tinyqmoe_status Products::multiply_parts(const Input& input) {
  const uint32_t n_threads = loops_->n_threads();
  uint64_t scratch_bytes = 0, rows = 0;
  for (const Part& part : parts_) {
    scratch_bytes = std::max(scratch_bytes, tinyqmoe_linear_scratch_bytes(part.tensor, input.n_tokens));
    rows += round_up(part.end - part.begin, kUnit);
  }
  while (scratch_.size() < n_threads) scratch_.emplace_back();
  for (uint32_t i = 0; i < n_threads; ++i) {
    if (!scratch_[i].reserve(scratch_bytes)) return TINYQMOE_OUT_OF_MEMORY;
  }
  const uint64_t pieces = uint64_t{kPieces} * n_threads;
  const uint64_t grain = std::max<uint64_t>(kMinRows, round_up((rows + pieces - 1) / pieces, kUnit));
  Failure failure;
  loops_->run(rows, grain, [&](uint64_t from, uint64_t to, uint32_t thread) {
    uint64_t at = 0;  // of the part's first row in the loop
    for (const Part& part : parts_) {
      const uint64_t n = part.end - part.begin;
      const uint64_t first = std::max(from, at), last = std::min(to, at + n);
      if (first < last) failure.note(multiply_rows(part, input, first - at, last - at, &scratch_[thread]));
      at += round_up(n, kUnit);
    }
  });
  return failure.status();
}

// Rows [from, to) of the part, by the calling thread.
tinyqmoe_status Products::multiply_rows(const Part& part, const Input& input, uint64_t from, uint64_t to,
                                        Buffer* scratch) const {
  const Matrix& matrix = *part.product->matrix;
  const tinyqmoe_linear_args args = {part.tensor,
                                     matrix.scales,
                                     matrix.scale_type,
                                     matrix.group_size,
                                     input.n_tokens,
                                     part.begin + static_cast<uint32_t>(from),
                                     part.begin + static_cast<uint32_t>(to),
                                     isa_,
                                     scratch->data(),
                                     scratch->size(),
                                     part.product->y};
  if (!input.in_int16) return tinyqmoe_linear_f32(&args, input.x);
  return tinyqmoe_linear_x16(&args, quantized_.data(), static_cast<const float*>(x_scales_.data()));
}

tinyqmoe_status Products::embed(const Matrix& matrix, const int64_t* ids, uint32_t n_ids, float* out) {
  const tinyqmoe_embedding_args args = {matrix.tensor, matrix.scales, matrix.scale_type, matrix.group_size,
                                        isa_, ids, n_ids, out};
  return tinyqmoe_embedding(&args);
}

uint64_t Products::buffer_bytes() const {
  uint64_t sum = quantized_.size() + x_scales_.size();
  for (const Buffer& scratch : scratch_) sum += scratch.size();
  return sum;
}

}  // namespace tinyqmoe
