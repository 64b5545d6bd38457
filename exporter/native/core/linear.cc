#include "linear.h"

#include <algorithm>

#include "activations.h"
#include "product.h"

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

namespace tinyqmoe {

ScratchLayout scratch_layout(const tinyqmoe_info& info, uint32_t n_tokens) {
  // Of expanded rows. One token meets them in L1 with its activations beside them, many tokens in L2.
  const uint64_t block_bytes = n_tokens > 1 ? 128 * 1024 : 20 * 1024;
  ScratchLayout at{};
  at.row_stride = round_up(info.cols, 64);
  const uint64_t rows = block_bytes / at.row_stride / kDotRows * kDotRows;
  at.block_rows = static_cast<uint32_t>(std::clamp<uint64_t>(rows, kDotRows, 32));
  at.rows = round_up(uint64_t{n_tokens} * (info.cols / kMinFastGroup + 1) * sizeof(int32_t), 64);
  at.packed_x = at.rows + at.block_rows * at.row_stride;
  at.float_rows = at.packed_x + 2 * round_up(info.cols, info.codec == kBase3 ? 2 * kBase3Columns : 4 * kPackedBlock);
  at.sums = at.float_rows + round_up(uint64_t{kDotRows} * info.cols * sizeof(float), 64);
  at.total = at.sums + (n_tokens > 1 ? uint64_t{n_tokens} * kBatchRows * sizeof(int64_t) : 0);
  return at;
}

namespace {

// Rows first..first+3 of the block times one token, one group after the other.
void multiply_each_group(const X16Product& p, const RowBlock& block, uint32_t row0, uint32_t first, uint32_t token) {
  const uint32_t n_rows = std::min(kDotRows, block.n - first);
  float y[kDotRows] = {};
  for (uint32_t g = 0; g < p.n_groups; ++g) {
    const uint32_t begin = g * p.group_size;
    DotTask task;
    for (uint32_t r = 0; r < kDotRows; ++r) task.offsets[r] = block.row(first + r) + begin;
    task.x = p.x(token).from(begin);
    task.n = p.group_end(g) - begin;
    task.n_levels = p.tensor.info.n_levels;
    task.x_sum = p.x_sum(token, g);
    p.kernels.dot(&task);
    const int64_t correction = p.correction(task.x_sum);
    for (uint32_t r = 0; r < n_rows; ++r) {
      p.add_group(p.scale(row0 + first + r, g), token, task.sums[r] + correction, y + r);
    }
  }
  for (uint32_t r = 0; r < n_rows; ++r) p.store_row(row0 + first + r, token, y[r]);
}

// The block times one token, groups for which there is a kernel.
void multiply_block_groups(const X16Product& p, const RowBlock& block, uint32_t row0) {
  GroupsTask task = groups_task(p, 8, nullptr);
  for (uint32_t first = 0; first < block.n; first += kDotRows) {
    for (uint32_t r = 0; r < kDotRows; ++r) task.rows[r] = block.row(first + r);
    multiply_groups(p, &task, row0 + first, std::min(kDotRows, block.n - first));
  }
}

// The block times one token.
void multiply_token(const X16Product& p, const RowBlock& block, uint32_t row0, uint32_t token) {
  if (p.n_groups > 1) {
    if (suits_groups(p)) return multiply_block_groups(p, block, row0);
    for (uint32_t r = 0; r < block.n; r += kDotRows) multiply_each_group(p, block, row0, r, token);
    return;
  }
  const Results results(p, token);
  DotTask task;
  task.x = p.x(token);
  task.n = p.cols();
  task.n_levels = p.tensor.info.n_levels;
  task.x_sum = p.x_sum(token, 0);
  for (uint32_t first = 0; first < block.n; first += kDotRows) {
    for (uint32_t r = 0; r < kDotRows; ++r) task.offsets[r] = block.row(first + r);
    p.kernels.dot(&task);
    results.put(row0 + first, std::min(kDotRows, block.n - first), task.sums);
  }
}

// Puts a group of rows first..first+n-1 and of all tokens where it belongs.
void put_group(const X16Product& p, const BatchTask& task, uint32_t first, uint32_t g) {
  float scales[kBatchRows];
  for (uint32_t r = 0; r < task.n_rows; ++r) scales[r] = p.scale(first + r, g);
  for (uint32_t t = 0; t < p.n_tokens; ++t) {
    const int64_t* const sums = task.sums + uint64_t{t} * kBatchRows;
    float* const y = p.y_at(first, t);
    const float x_scale = p.x_scales[t];
    if (p.n_groups == 1) {
      for (uint32_t r = 0; r < task.n_rows; ++r) y[r] = static_cast<float>(sums[r]) * (x_scale * scales[r]);
      continue;
    }
    if (g == 0) std::fill_n(y, task.n_rows, 0.0f);
    for (uint32_t r = 0; r < task.n_rows; ++r) {
      const float term = static_cast<float>(sums[r]) * scales[r];
      y[r] += term;
    }
    if (g + 1 < p.n_groups) continue;
    for (uint32_t r = 0; r < task.n_rows; ++r) y[r] *= x_scale;
  }
}

// Columns begin..end-1 of rows first..first+15 of the block, and all tokens.
BatchTask batch_of(const X16Product& p, const RowBlock& block, uint32_t first, uint32_t begin, uint32_t end) {
  BatchTask task{};
  for (uint32_t r = 0; r < kBatchRows; ++r) task.offsets[r] = block.row(first + r) + begin;
  task.n_rows = std::min(kBatchRows, block.n - first);
  task.level_min = p.tensor.info.level_min;
  task.x = p.x(0).from(begin);
  task.token_stride = tinyqmoe_quantized_bytes(p.cols());
  task.n = end - begin;
  task.n_tokens = p.n_tokens;
  return task;
}

// Rows first..first+15 of the block times all tokens.
void multiply_batch(const X16Product& p, const RowBlock& block, uint32_t row0, uint32_t first) {
  if (suits_batch_groups(p)) return multiply_batch_groups(p, batch_of(p, block, first, 0, p.cols()), row0 + first);
  for (uint32_t g = 0; g < p.n_groups; ++g) {
    BatchTask task = batch_of(p, block, first, g * p.group_size, p.group_end(g));
    task.sums = reinterpret_cast<int64_t*>(p.scratch + p.at.sums);
    p.kernels.dot_batch(task);
    put_group(p, task, row0 + first, g);
  }
}

void multiply_block(const X16Product& p, const RowBlock& block, uint32_t row) {
  if (p.is_batch()) {
    for (uint32_t r = 0; r < block.n; r += kBatchRows) multiply_batch(p, block, row, r);
    return;
  }
  for (uint32_t token = 0; token < p.n_tokens; ++token) multiply_token(p, block, row, token);
}

// Rows are expanded once, a block that stays in the cache, and meet all tokens.
tinyqmoe_status multiply_blocks(const X16Product& p) {
  RowCursor cursor(p.tensor, p.row_begin);
  for (uint32_t row = p.row_begin; row < p.row_end;) {
    RowBlock block;
    const tinyqmoe_status status = load_rows(p, row, std::min(p.at.block_rows, p.row_end - row), &cursor, &block);
    if (status != TINYQMOE_OK) return status;
    multiply_block(p, block, row);
    row += block.n;
  }
  return TINYQMOE_OK;
}

tinyqmoe_status multiply_x16(X16Product* p) {
  const tinyqmoe_info& info = p->tensor.info;
  if (!p->is_batch()) keep_x_sums(p);
  if (suits_groups(*p)) keep_corrections(*p);
  if (info.codec == kBase3 && p->n_tokens == 1 && p->n_groups == 1 && p->kernels.dot_base3 != nullptr) {
    multiply_base3(*p);
    return TINYQMOE_OK;
  }
  const uint32_t block = kPackedBlock * 8 / info.code_bits;
  const bool whole_blocks = p->n_groups == 1 || p->group_size % block == 0;
  const bool half_blocks = p->group_size == block / 2 && suits_groups(*p);
  if (info.codec == kClipped && p->n_tokens == 1 && p->n_groups == 1) {
    multiply_clipped(*p);
    return TINYQMOE_OK;
  }
  if (p->n_tokens > 1 || info.codec != kRaw || info.code_bits == 8 || !(whole_blocks || half_blocks)) {
    return multiply_blocks(*p);
  }
  multiply_packed(*p);
  return TINYQMOE_OK;
}

// ---- float ----

void to_float(const uint8_t* offsets, uint32_t n, int32_t level_min, float* out) {
  for (uint32_t i = 0; i < n; ++i) out[i] = static_cast<float>(offsets[i] + level_min);
}

void multiply_floats(const Product& p, const float* const w[kDotRows], const float* x, uint32_t row, uint32_t n_rows,
                     uint32_t token) {
  float y[kDotRows] = {};
  for (uint32_t g = 0; g < p.n_groups; ++g) {
    const uint32_t begin = g * p.group_size;
    const float* group_w[kDotRows];
    for (uint32_t r = 0; r < kDotRows; ++r) group_w[r] = w[r] + begin;
    float sums[kDotRows];
    p.kernels.dot_f32(group_w, x + begin, p.group_end(g) - begin, sums);
    for (uint32_t r = 0; r < n_rows; ++r) {
      const float term = sums[r] * p.scale(row + r, g);
      y[r] += term;
    }
  }
  for (uint32_t r = 0; r < n_rows; ++r) *p.y_at(row + r, token) = y[r];
}

tinyqmoe_status multiply_f32(const Product& p, const float* x) {
  const uint32_t cols = p.cols();
  float* floats = reinterpret_cast<float*>(p.scratch + p.at.float_rows);
  RowCursor cursor(p.tensor, p.row_begin);
  for (uint32_t row = p.row_begin; row < p.row_end;) {
    RowBlock block;
    const tinyqmoe_status status = load_rows(p, row, std::min(kDotRows, p.row_end - row), &cursor, &block);
    if (status != TINYQMOE_OK) return status;
    const float* w[kDotRows];
    for (uint32_t r = 0; r < block.n; ++r) {
      to_float(block.row(r), cols, p.tensor.info.level_min, floats + uint64_t{r} * cols);
    }
    for (uint32_t r = 0; r < kDotRows; ++r) w[r] = floats + uint64_t{std::min(r, block.n - 1)} * cols;
    for (uint32_t t = 0; t < p.n_tokens; ++t) multiply_floats(p, w, x + uint64_t{t} * cols, row, block.n, t);
    row += block.n;
  }
  return TINYQMOE_OK;
}

// ---- the calls ----

tinyqmoe_status check_call(const tinyqmoe_linear_args* args, const void* x, const Kernels** kernels) {
  if (args == nullptr || args->tensor == nullptr || args->scales == nullptr || x == nullptr || args->y == nullptr ||
      args->scratch == nullptr) {
    return TINYQMOE_BAD_ARGUMENT;
  }
  const bool rows_exist = args->row_begin <= args->row_end && args->row_end <= args->tensor->info.rows;
  if (args->group_size == 0 || !is_scale_type(args->scale_type) || !rows_exist) return TINYQMOE_BAD_ARGUMENT;
  if (reinterpret_cast<uintptr_t>(args->scratch) % 64 != 0) return TINYQMOE_BAD_ARGUMENT;
  *kernels = kernels_for(args->isa);
  if (*kernels == nullptr) return TINYQMOE_NO_ISA;
  const uint64_t needed = tinyqmoe_linear_scratch_bytes(args->tensor, args->n_tokens);
  return args->scratch_bytes < needed ? TINYQMOE_BUFFER_TOO_SMALL : TINYQMOE_OK;
}

Product make_product(const tinyqmoe_linear_args& args, const Kernels& kernels) {
  const tinyqmoe_info& info = args.tensor->info;
  const uint32_t size = std::min(args.group_size, info.cols);
  const uint32_t n_groups = (info.cols + size - 1) / size;
  const Kernels& chosen = n_groups > 1 && size < kMinFastGroup ? *scalar_kernels() : kernels;
  return {*args.tensor, chosen, {args.scales, args.scale_type}, size, n_groups, args.n_tokens,
          args.row_begin, args.row_end, scratch_layout(info, args.n_tokens), static_cast<uint8_t*>(args.scratch),
          args.y};
}

tinyqmoe_status check_levels(const Product& p) {
  if (p.tensor.checked == nullptr) return TINYQMOE_OK;  // codes are checked as they are decoded
  return check_packed_rows(p.tensor, p.kernels, p.row_begin, p.row_end, p.scratch + p.at.rows);
}

}  // namespace
}  // namespace tinyqmoe

extern "C" {

uint64_t tinyqmoe_linear_scratch_bytes(const tinyqmoe_tensor* tensor, uint32_t n_tokens) {
  return tinyqmoe::scratch_layout(tensor->info, n_tokens).total;
}

tinyqmoe_status tinyqmoe_linear_x16(const tinyqmoe_linear_args* args, const void* quantized, const float* x_scales) {
  const tinyqmoe::Kernels* kernels;
  const tinyqmoe_status status = tinyqmoe::check_call(args, quantized, &kernels);
  if (status != TINYQMOE_OK) return status;
  if (x_scales == nullptr || reinterpret_cast<uintptr_t>(quantized) % 64 != 0) return TINYQMOE_BAD_ARGUMENT;
  if (args->n_tokens == 0 || args->row_begin == args->row_end) return TINYQMOE_OK;
  tinyqmoe::X16Product product{tinyqmoe::make_product(*args, *kernels), quantized, x_scales, false};
  const tinyqmoe_status checked = tinyqmoe::check_levels(product);
  return checked == TINYQMOE_OK ? tinyqmoe::multiply_x16(&product) : checked;
}

tinyqmoe_status tinyqmoe_linear_f32(const tinyqmoe_linear_args* args, const float* x) {
  const tinyqmoe::Kernels* kernels;
  const tinyqmoe_status status = tinyqmoe::check_call(args, x, &kernels);
  if (status != TINYQMOE_OK) return status;
  if (args->n_tokens == 0 || args->row_begin == args->row_end) return TINYQMOE_OK;
  const tinyqmoe::Product product = tinyqmoe::make_product(*args, *kernels);
  const tinyqmoe_status checked = tinyqmoe::check_levels(product);
  return checked == TINYQMOE_OK ? tinyqmoe::multiply_f32(product, x) : checked;
}

}  // extern "C"
