// ExecuTorch registrations of the operators over coded matrices. Thin: shapes are checked here, the work is in core/.
//
//   tinyqmoe::lzw_decode.out(Tensor blob, int rows, int cols, *, Tensor(a!) out) -> Tensor(a!)
//   tinyqmoe::lzw_linear.out(Tensor x, Tensor blob, Tensor scales, int out_features, int group_size,
//                            bool int16_activations, *, Tensor(a!) out) -> Tensor(a!)
//   tinyqmoe::lzw_embedding.out(Tensor ids, Tensor blob, Tensor scales, int embedding_dim, int group_size,
//                               *, Tensor(a!) out) -> Tensor(a!)

#include <executorch/extension/kernel_util/make_boxed_from_unboxed_functor.h>

#include "common.h"
#include "open_tensors.h"

namespace tinyqmoe_executorch {
namespace {

constexpr uint32_t kTileRows = 32;
constexpr int64_t kWeightsPerPiece = 1 << 16;  // below this a second thread costs more than it brings
constexpr int64_t kPieces = 3;  // a thread: few, as each call packs the activations anew

struct ReleaseForm {
  void operator()(tinyqmoe_form* form) const { tinyqmoe_release(form); }
};

tinyqmoe_scale_type scale_type(const Tensor& scales) {
  return scales.scalar_type() == ScalarType::Float ? TINYQMOE_SCALES_FLOAT32 : TINYQMOE_SCALES_UE6M10;
}

// Scales are [rows, ceil(cols / group_size)], float32 or as uint16 those of TINYQMOE_SCALES_UE6M10.
bool scales_fit(const Tensor& scales, const tinyqmoe_info& info, int64_t group_size) {
  const bool known = scales.scalar_type() == ScalarType::Float || scales.scalar_type() == ScalarType::UInt16;
  if (!known || !executorch::runtime::tensor_is_default_dim_order(scales)) return false;
  if (scales.dim() != 2 || group_size <= 0) return false;
  const int64_t groups = (static_cast<int64_t>(info.cols) + group_size - 1) / group_size;
  return scales.size(0) == static_cast<int64_t>(info.rows) && scales.size(1) == groups;
}

// Work on one matrix product, shared by the threads that split its rows.
struct Product {
  const tinyqmoe_tensor* tensor;
  tinyqmoe_info info;
  const void* scales;
  tinyqmoe_scale_type scale_type;
  uint32_t group_size;
  uint32_t n_tokens;
  const float* x;         // [n_tokens, cols]
  const void* quantized;  // of tinyqmoe_quantize_x16, null with float activations
  const float* x_scales;  // [n_tokens]
  float* y;               // [n_tokens, rows]

  tinyqmoe_status rows(uint32_t begin, uint32_t end) const {
    const uint64_t scratch_bytes = tinyqmoe_linear_scratch_bytes(tensor, n_tokens);
    thread_local Kept kept;
    void* const scratch = kept.at_least(scratch_bytes);
    if (scratch == nullptr) return TINYQMOE_OUT_OF_MEMORY;
    const tinyqmoe_linear_args args = {tensor, scales, scale_type, group_size, n_tokens, begin, end, TINYQMOE_ISA_AUTO,
                                       scratch, scratch_bytes, y};
    return quantized == nullptr ? tinyqmoe_linear_f32(&args, x) : tinyqmoe_linear_x16(&args, quantized, x_scales);
  }

  // A block of rows; begin is a multiple of a tile.
  tinyqmoe_status block(uint32_t block_begin, uint32_t block_end) const {
    const int64_t n_tiles = (static_cast<int64_t>(block_end - block_begin) + kTileRows - 1) / kTileRows;
    const int64_t tile_weights = static_cast<int64_t>(kTileRows) * info.cols * n_tokens;
    const int64_t n_pieces = kPieces * executorch::extension::get_thread_count();
    const int64_t least = kWeightsPerPiece / std::max<int64_t>(1, tile_weights);
    return share(n_tiles, std::max(least, (n_tiles + n_pieces - 1) / n_pieces), [&](int64_t first, int64_t last) {
      const uint32_t begin = block_begin + static_cast<uint32_t>(first * kTileRows);
      return rows(begin, static_cast<uint32_t>(std::min<int64_t>(block_begin + last * kTileRows, block_end)));
    });
  }

  tinyqmoe_status run(tinyqmoe_form* form) const {
    tinyqmoe_status status = TINYQMOE_OK;
    uint32_t begin;
    uint32_t end;
    while (status == TINYQMOE_OK && tinyqmoe_form_next_rows(form, &begin, &end)) status = block(begin, end);
    return status;
  }
};

// ExecuTorch's threads, for what the core makes.
void run_parts(void*, uint64_t n_parts, void (*work)(void* context, uint64_t part), void* context) {
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) work(context, static_cast<uint64_t>(i));
    return TINYQMOE_OK;
  };
  if (share(static_cast<int64_t>(n_parts), 1, run) != TINYQMOE_OK) run(0, static_cast<int64_t>(n_parts));
}

constexpr tinyqmoe_threads kThreads = {nullptr, run_parts};

tinyqmoe_status multiply(Product product, bool int16_activations) {
  tinyqmoe_form* acquired = nullptr;
  const tinyqmoe_status found = tinyqmoe_acquire_with_threads(product.tensor, &kThreads, &acquired);
  if (found != TINYQMOE_OK) return found;
  const std::unique_ptr<tinyqmoe_form, ReleaseForm> form(acquired);
  product.tensor = tinyqmoe_form_tensor(acquired);
  if (!int16_activations) return product.run(acquired);
  thread_local Kept quantized;
  thread_local Kept x_scales;
  void* const q = quantized.at_least(product.n_tokens * tinyqmoe_quantized_bytes(product.info.cols));
  float* const s = static_cast<float*>(x_scales.at_least(static_cast<uint64_t>(product.n_tokens) * sizeof(float)));
  if (q == nullptr || s == nullptr) return TINYQMOE_OUT_OF_MEMORY;
  const tinyqmoe_status status =
      tinyqmoe_quantize_x16(product.x, product.n_tokens, product.info.cols, TINYQMOE_ISA_AUTO, q, s);
  if (status != TINYQMOE_OK) return status;
  product.quantized = q;
  product.x_scales = s;
  return product.run(acquired);
}

}  // namespace

Tensor& lzw_decode_out(KernelRuntimeContext& context, const Tensor& blob, int64_t rows, int64_t cols, Tensor& out) {
  std::shared_ptr<tinyqmoe_tensor> tensor;
  const tinyqmoe_status opened = tensors_in_use().find(blob, &tensor);
  if (opened != TINYQMOE_OK) return finish(context, "lzw_decode", opened), out;
  tinyqmoe_info info;
  tinyqmoe_get_info(tensor.get(), &info);
  ET_KERNEL_CHECK_MSG(context, rows == info.rows && cols == info.cols && out.scalar_type() == ScalarType::Char,
                      InvalidArgument, out, "lzw_decode: the blob is %" PRIu32 " x %" PRIu32, info.rows, info.cols);
  SizesType sizes[2] = {static_cast<SizesType>(rows), static_cast<SizesType>(cols)};
  ET_KERNEL_CHECK(context, executorch::runtime::resize_tensor(out, {sizes, 2}) == Error::Ok, InvalidArgument, out);
  const tinyqmoe_status status =
      tinyqmoe_decode_rows(tensor.get(), 0, info.rows, TINYQMOE_ISA_AUTO, out.mutable_data_ptr<int8_t>());
  finish(context, "lzw_decode", status);
  return out;
}

Tensor& lzw_linear_out(KernelRuntimeContext& context, const Tensor& x, const Tensor& blob, const Tensor& scales,
                       int64_t out_features, int64_t group_size, bool int16_activations, Tensor& out) {
  std::shared_ptr<tinyqmoe_tensor> tensor;
  const tinyqmoe_status opened = tensors_in_use().find(blob, &tensor);
  if (opened != TINYQMOE_OK) return finish(context, "lzw_linear", opened), out;
  Product product = {};
  product.tensor = tensor.get();
  tinyqmoe_get_info(tensor.get(), &product.info);
  const tinyqmoe_info& info = product.info;
  ET_KERNEL_CHECK_MSG(context, is_contiguous_float(x) && is_contiguous_float(out) && x.dim() > 0 &&
                                   x.size(x.dim() - 1) == info.cols && out_features == info.rows &&
                                   scales_fit(scales, info, group_size),
                      InvalidArgument, out, "lzw_linear: x, scales or out do not fit a blob of %" PRIu32 " x %" PRIu32,
                      info.rows, info.cols);
  ET_KERNEL_CHECK(context, resize_like(x, 1, out_features, out), InvalidArgument, out);
  product.scales = scales.const_data_ptr();
  product.scale_type = scale_type(scales);
  product.group_size = static_cast<uint32_t>(std::min<int64_t>(group_size, info.cols));
  product.n_tokens = static_cast<uint32_t>(x.numel() / info.cols);
  product.x = x.const_data_ptr<float>();
  product.y = out.mutable_data_ptr<float>();
  const tinyqmoe_status status = multiply(product, int16_activations);
  finish(context, "lzw_linear", status);
  return out;
}

Tensor& lzw_embedding_out(KernelRuntimeContext& context, const Tensor& ids, const Tensor& blob, const Tensor& scales,
                          int64_t embedding_dim, int64_t group_size, Tensor& out) {
  std::shared_ptr<tinyqmoe_tensor> tensor;
  const tinyqmoe_status opened = tensors_in_use().find(blob, &tensor);
  if (opened != TINYQMOE_OK) return finish(context, "lzw_embedding", opened), out;
  tinyqmoe_info info;
  tinyqmoe_get_info(tensor.get(), &info);
  ET_KERNEL_CHECK_MSG(context, ids.scalar_type() == ScalarType::Long && is_contiguous_float(out) &&
                                   embedding_dim == info.cols && scales_fit(scales, info, group_size),
                      InvalidArgument, out, "lzw_embedding: ids, scales or out do not fit a blob of %" PRIu32
                      " x %" PRIu32, info.rows, info.cols);
  ET_KERNEL_CHECK(context, resize_like(ids, 0, embedding_dim, out), InvalidArgument, out);
  const tinyqmoe_embedding_args args = {tensor.get(),
                                        scales.const_data_ptr(),
                                        scale_type(scales),
                                        static_cast<uint32_t>(std::min<int64_t>(group_size, info.cols)),
                                        TINYQMOE_ISA_AUTO,
                                        ids.const_data_ptr<int64_t>(),
                                        static_cast<uint64_t>(ids.numel()),
                                        out.mutable_data_ptr<float>()};
  const tinyqmoe_status status = tinyqmoe_embedding(&args);
  finish(context, "lzw_embedding", status);
  return out;
}

EXECUTORCH_LIBRARY(tinyqmoe, "lzw_decode.out", lzw_decode_out);
EXECUTORCH_LIBRARY(tinyqmoe, "lzw_linear.out", lzw_linear_out);
EXECUTORCH_LIBRARY(tinyqmoe, "lzw_embedding.out", lzw_embedding_out);

}  // namespace tinyqmoe_executorch
