// ExecuTorch registrations of the operators over coded matrices. Thin: shapes are checked here, the work is in core/.
//
//   tinyqmoe::lzw_decode.out(Tensor blob, int rows, int cols, *, Tensor(a!) out) -> Tensor(a!)
//   tinyqmoe::lzw_linear.out(Tensor x, Tensor blob, Tensor scales, int out_features, int group_size,
//                            bool int16_activations, *, Tensor(a!) out) -> Tensor(a!)
//   tinyqmoe::lzw_linears.out(Tensor x, Tensor[] blobs, Tensor[] scales, int[] group_sizes, bool int16_activations,
//                             *, Tensor(a!)[] out) -> ()
//   tinyqmoe::lzw_embedding.out(Tensor ids, Tensor blob, Tensor scales, int embedding_dim, int group_size,
//                               *, Tensor(a!) out) -> Tensor(a!)

#include <executorch/extension/kernel_util/make_boxed_from_unboxed_functor.h>

#include "common.h"
#include "open_tensors.h"
#include "products.h"

namespace tinyqmoe_executorch {
namespace {

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

// A call of lzw_linear or lzw_linears: its arguments are checked as they are added.
class LinearCall {
 public:
  LinearCall(KernelRuntimeContext& context, const char* op, const Tensor& x, size_t n_matrices)
      : context_(context), op_(op), x_(x) {
    tensors_.reserve(n_matrices);
    matrices_.reserve(n_matrices);
    products_.reserve(n_matrices);
  }

  // False: the matrix does not fit, and the program has failed.
  bool add(const Tensor& blob, const Tensor& scales, int64_t group_size, Tensor out) {
    std::shared_ptr<tinyqmoe_tensor> tensor;
    const tinyqmoe_status opened = tensors_in_use().find(blob, &tensor);
    if (opened != TINYQMOE_OK) return finish(context_, op_, opened), false;
    tinyqmoe_info info;
    tinyqmoe_get_info(tensor.get(), &info);
    ET_KERNEL_CHECK_MSG(context_, is_contiguous_float(x_) && is_contiguous_float(out) && x_.dim() > 0 &&
                                      x_.size(x_.dim() - 1) == info.cols && scales_fit(scales, info, group_size) &&
                                      resize_like(x_, 1, info.rows, out),
                        InvalidArgument, false, "%s: x, scales or out do not fit a blob of %" PRIu32 " x %" PRIu32, op_,
                        info.rows, info.cols);
    const auto group = static_cast<uint32_t>(std::min<int64_t>(group_size, info.cols));
    matrices_.push_back({tensor.get(), scales.const_data_ptr(), scale_type(scales), group, info.rows, info.cols});
    products_.push_back({&matrices_.back(), out.mutable_data_ptr<float>()});
    tensors_.push_back(std::move(tensor));
    return true;
  }

  void run(bool int16_activations) {
    thread_local HostLoops loops;
    thread_local tinyqmoe::Products products(&loops, TINYQMOE_ISA_AUTO);  // keeps its memory, for the next call
    const auto n_tokens = static_cast<uint32_t>(x_.numel() / last_size(x_));
    const tinyqmoe::Products::Input input = {x_.const_data_ptr<float>(), n_tokens, int16_activations};
    finish(context_, op_, products.multiply(input, products_.data(), static_cast<uint32_t>(products_.size())));
  }

 private:
  KernelRuntimeContext& context_;
  const char* op_;
  const Tensor& x_;
  std::vector<std::shared_ptr<tinyqmoe_tensor>> tensors_;
  std::vector<tinyqmoe::Matrix> matrices_;  // stay where they are: there is room for all
  std::vector<tinyqmoe::Products::Product> products_;
};

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
  LinearCall call(context, "lzw_linear", x, 1);
  if (!call.add(blob, scales, group_size, out)) return out;
  ET_KERNEL_CHECK_MSG(context, last_size(out) == out_features, InvalidArgument, out,
                      "lzw_linear: the blob has %" PRId64 " rows", static_cast<int64_t>(last_size(out)));
  call.run(int16_activations);
  return out;
}

// Boxed by hand, as ExecuTorch's own boxing has no lists of results.
void lzw_linears_out(KernelRuntimeContext& context, executorch::runtime::Span<executorch::runtime::EValue*> stack) {
  constexpr char kName[] = "tinyqmoe::lzw_linears.out";
  const executorch::runtime::internal::EventTracerProfileOpScope scope(context.internal_event_tracer(), kName);
  ET_KERNEL_CHECK_MSG(context, stack.size() >= 6, InvalidArgument, , "lzw_linears: %zu arguments", stack.size());
  const auto x = stack[0]->tryToTensor();
  const auto blobs = stack[1]->tryToTensorList(), scales = stack[2]->tryToTensorList();
  const auto group_sizes = stack[3]->tryToIntList();
  const auto int16_activations = stack[4]->tryToBool();
  const auto outs = stack[5]->tryToTensorList();
  ET_KERNEL_CHECK(context, x.ok() && blobs.ok() && scales.ok() && group_sizes.ok() && int16_activations.ok() && outs.ok(),
                  InvalidArgument, );
  const size_t n = blobs->size();
  ET_KERNEL_CHECK_MSG(context, n > 0 && scales->size() == n && group_sizes->size() == n && outs->size() == n,
                      InvalidArgument, , "lzw_linears: lists of different lengths, or empty ones");
  LinearCall call(context, "lzw_linears", *x, n);
  for (size_t i = 0; i < n; ++i) {
    if (!call.add((*blobs)[i], (*scales)[i], (*group_sizes)[i], (*outs)[i])) return;
  }
  call.run(*int16_activations);
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

[[maybe_unused]] const auto g_linears = executorch::runtime::register_kernel(
    executorch::runtime::Kernel("tinyqmoe::lzw_linears.out", lzw_linears_out));

}  // namespace tinyqmoe_executorch
