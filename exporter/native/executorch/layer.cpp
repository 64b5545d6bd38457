// ExecuTorch registrations of the rest of a decoder layer. Thin: shapes are checked here, the work is in llm/.
//
//   tinyqmoe::rms_norm.out(Tensor x, Tensor weight, float eps, *, Tensor(a!) out) -> Tensor(a!)
//   tinyqmoe::rope_angles.out(Tensor tokens, Tensor input_pos, Tensor frequencies, *, Tensor(a!) out) -> Tensor(a!)
//   tinyqmoe::attention.out(Tensor q, Tensor k, Tensor v, Tensor angles, Tensor input_pos, Tensor(a!) cache,
//                           int context, int kv_type, *, Tensor(b!) out) -> Tensor(b!)
//   tinyqmoe::swiglu.out(Tensor gate, Tensor up, *, Tensor(a!) out) -> Tensor(a!)
//   tinyqmoe::add.out(Tensor x, Tensor y, *, Tensor(a!) out) -> Tensor(a!)
//   tinyqmoe::last.out(Tensor x, *, Tensor(a!) out) -> Tensor(a!)

#include <cstring>

#include <executorch/extension/kernel_util/make_boxed_from_unboxed_functor.h>

#include "common.h"
#include "tinyqmoe/llm.h"

namespace tinyqmoe_executorch {
namespace {

// Below these, a second thread costs more than it brings.
constexpr int64_t kValuesPerPiece = 4096;
constexpr int64_t kMultiplicationsPerPiece = 1 << 14;

constexpr uintptr_t kCacheAlignment = 64;

bool is_position(const Tensor& t) { return t.scalar_type() == ScalarType::Long && t.numel() == 1; }

// The position if it and n_tokens more fit into `context`, or -1.
int64_t position_of(const Tensor& input_pos, int64_t n_tokens, int64_t context) {
  const int64_t position = input_pos.const_data_ptr<int64_t>()[0];
  return position >= 0 && position <= context - n_tokens ? position : -1;
}

// Attention of one call: the sizes of its tensors, and its parts in order.
struct Attention {
  tinyqmoe_kv_cache cache;
  uint32_t heads;
  uint32_t n_tokens;
  uint32_t position;

  uint64_t values_of(uint32_t n_heads) const { return uint64_t{n_tokens} * n_heads * cache.head_dim; }

  // x, rotated, in memory of its own: the values of a program are not to be changed in place.
  tinyqmoe_status rotate(const float* x, uint32_t n_heads, const float* angles, float* rotated) const {
    std::memcpy(rotated, x, values_of(n_heads) * sizeof(float));
    const float* const sines = angles + uint64_t{n_tokens} * (cache.head_dim / 2);
    const tinyqmoe_rope_args args = {rotated, angles, sines, n_heads, cache.head_dim};
    const int64_t piece = kValuesPerPiece / (uint64_t{n_heads} * cache.head_dim);
    return share(n_tokens, piece, [&](int64_t begin, int64_t end) {
      return tinyqmoe_rope(&args, static_cast<uint32_t>(begin), static_cast<uint32_t>(end));
    });
  }

  tinyqmoe_status store(const float* k, const float* v) const {
    const tinyqmoe_kv_write_args args = {k, v, position, n_tokens};
    const int64_t piece = kValuesPerPiece / (uint64_t{n_tokens} * cache.head_dim);
    return share(cache.kv_heads, piece, [&](int64_t begin, int64_t end) {
      return tinyqmoe_kv_cache_write(&cache, &args, static_cast<uint32_t>(begin), static_cast<uint32_t>(end));
    });
  }

  tinyqmoe_status attend(const float* q, float* y) const {
    const tinyqmoe_attention_args args = {&cache, q, y, heads, position, n_tokens};
    const auto n_threads = static_cast<uint32_t>(executorch::extension::get_thread_count());
    if (tinyqmoe_attention_in_steps(&args, n_threads)) return attend_in_steps(args);
    const uint64_t scratch_bytes = tinyqmoe_attention_scratch_bytes(&args);
    const uint64_t items = tinyqmoe_attention_items(&args);
    if (scratch_bytes == 0 || items == 0) return TINYQMOE_BAD_ARGUMENT;
    const uint64_t work = (uint64_t{position} + n_tokens) * values_of(heads) / items;
    return share(static_cast<int64_t>(items), static_cast<int64_t>(kMultiplicationsPerPiece / work),
                 [&](int64_t begin, int64_t end) {
                   thread_local Kept kept;
                   void* const scratch = kept.at_least(scratch_bytes);
                   if (scratch == nullptr) return TINYQMOE_OUT_OF_MEMORY;
                   return tinyqmoe_attention(&args, static_cast<uint64_t>(begin), static_cast<uint64_t>(end),
                                             TINYQMOE_ISA_AUTO, scratch);
                 });
  }

  tinyqmoe_status attend_in_steps(const tinyqmoe_attention_args& args) const {
    thread_local Kept kept;
    void* const shared = kept.at_least(tinyqmoe_attention_shared_bytes(&args));
    if (shared == nullptr) return TINYQMOE_OUT_OF_MEMORY;
    tinyqmoe_status status = TINYQMOE_OK;
    for (const auto step : {TINYQMOE_ATTENTION_SCORES, TINYQMOE_ATTENTION_WEIGHTS, TINYQMOE_ATTENTION_VALUES}) {
      const auto items = static_cast<int64_t>(tinyqmoe_attention_step_items(&args, step));
      if (status == TINYQMOE_OK) status = share(items, 1, [&](int64_t begin, int64_t end) {
        return tinyqmoe_attention_do_step(&args, step, static_cast<uint64_t>(begin), static_cast<uint64_t>(end),
                                          TINYQMOE_ISA_AUTO, shared);
      });
    }
    return status;
  }

  tinyqmoe_status run(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& angles, Tensor& out) const {
    thread_local Kept kept_q;
    thread_local Kept kept_k;
    float* const own_q = static_cast<float*>(kept_q.at_least(values_of(heads) * sizeof(float)));
    float* const own_k = static_cast<float*>(kept_k.at_least(values_of(cache.kv_heads) * sizeof(float)));
    if (own_q == nullptr || own_k == nullptr) return TINYQMOE_OUT_OF_MEMORY;
    const float* const a = angles.const_data_ptr<float>();
    tinyqmoe_status status = rotate(q.const_data_ptr<float>(), heads, a, own_q);
    if (status == TINYQMOE_OK) status = rotate(k.const_data_ptr<float>(), cache.kv_heads, a, own_k);
    if (status == TINYQMOE_OK) status = store(own_k, v.const_data_ptr<float>());
    return status == TINYQMOE_OK ? attend(own_q, out.mutable_data_ptr<float>()) : status;
  }
};

// False if the tensors do not fit together. cache has kCacheAlignment bytes more than it needs: programs align to 16.
bool read_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& angles, const Tensor& input_pos,
                    const Tensor& cache, int64_t context, int64_t kv_type, Attention* attention) {
  const bool floats = is_contiguous_float(q) && is_contiguous_float(k) && is_contiguous_float(v) &&
                      is_contiguous_float(angles) && cache.scalar_type() == ScalarType::Byte;
  if (!floats || !is_position(input_pos) || q.dim() == 0 || angles.dim() != 3 || angles.size(0) != 2) return false;
  const int64_t n_tokens = angles.size(1), head_dim = 2 * angles.size(2);
  if (n_tokens == 0 || head_dim == 0 || last_size(q) % head_dim != 0 || last_size(k) % head_dim != 0) return false;
  const bool sized = q.numel() == n_tokens * last_size(q) && k.numel() == n_tokens * last_size(k) &&
                     v.numel() == k.numel() && last_size(v) == last_size(k);
  const int64_t position = position_of(input_pos, n_tokens, context);
  if (!sized || position < 0) return false;
  attention->cache = {nullptr, static_cast<tinyqmoe_kv_type>(kv_type), static_cast<uint32_t>(last_size(k) / head_dim),
                      static_cast<uint32_t>(head_dim), static_cast<uint32_t>(context)};
  attention->heads = static_cast<uint32_t>(last_size(q) / head_dim);
  attention->n_tokens = static_cast<uint32_t>(n_tokens);
  attention->position = static_cast<uint32_t>(position);
  const uint64_t n_bytes = tinyqmoe_kv_cache_bytes(&attention->cache);
  if (n_bytes == 0 || cache.nbytes() != n_bytes + kCacheAlignment) return false;
  // The place in a program's memory does not change while its method is loaded.
  const uintptr_t at = reinterpret_cast<uintptr_t>(cache.const_data_ptr<uint8_t>());
  attention->cache.bytes = reinterpret_cast<void*>((at + kCacheAlignment - 1) / kCacheAlignment * kCacheAlignment);
  return true;
}

}  // namespace

Tensor& rms_norm_out(KernelRuntimeContext& context, const Tensor& x, const Tensor& weight, double eps, Tensor& out) {
  const int64_t cols = weight.numel();
  ET_KERNEL_CHECK_MSG(context, is_contiguous_float(x) && is_contiguous_float(weight) && is_contiguous_float(out) &&
                                   cols > 0 && last_size(x) % cols == 0,
                      InvalidArgument, out, "rms_norm: x, weight or out do not fit");
  ET_KERNEL_CHECK(context, resize_like(x, 1, last_size(x), out), InvalidArgument, out);
  const tinyqmoe_rms_norm_args args = {x.const_data_ptr<float>(), weight.const_data_ptr<float>(),
                                       out.mutable_data_ptr<float>(), static_cast<uint32_t>(cols),
                                       static_cast<float>(eps)};
  finish(context, "rms_norm", share(x.numel() / cols, kValuesPerPiece / cols, [&](int64_t begin, int64_t end) {
           return tinyqmoe_rms_norm(&args, static_cast<uint64_t>(begin), static_cast<uint64_t>(end), TINYQMOE_ISA_AUTO);
         }));
  return out;
}

Tensor& rope_angles_out(KernelRuntimeContext& context, const Tensor& tokens, const Tensor& input_pos,
                        const Tensor& frequencies, Tensor& out) {
  ET_KERNEL_CHECK_MSG(context, is_position(input_pos) && is_contiguous_float(frequencies) && is_contiguous_float(out) &&
                                   tokens.numel() > 0,
                      InvalidArgument, out, "rope_angles: tokens, input_pos, frequencies or out do not fit");
  const int64_t n_tokens = tokens.numel(), n_pairs = frequencies.numel();
  SizesType sizes[3] = {2, static_cast<SizesType>(n_tokens), static_cast<SizesType>(n_pairs)};
  ET_KERNEL_CHECK(context, executorch::runtime::resize_tensor(out, {sizes, 3}) == Error::Ok, InvalidArgument, out);
  const int64_t position = position_of(input_pos, n_tokens, INT32_MAX);
  ET_KERNEL_CHECK_MSG(context, position >= 0, InvalidArgument, out, "rope_angles: position %" PRId64, position);
  float* const cosines = out.mutable_data_ptr<float>();
  finish(context, "rope_angles",
         tinyqmoe_rope_angles(frequencies.const_data_ptr<float>(), static_cast<uint32_t>(n_pairs),
                              static_cast<uint32_t>(position), static_cast<uint32_t>(n_tokens), cosines,
                              cosines + n_tokens * n_pairs));
  return out;
}

Tensor& attention_out(KernelRuntimeContext& context, const Tensor& q, const Tensor& k, const Tensor& v,
                      const Tensor& angles, const Tensor& input_pos, Tensor& cache, int64_t n_positions,
                      int64_t kv_type, Tensor& out) {
  Attention attention;
  ET_KERNEL_CHECK_MSG(context, read_attention(q, k, v, angles, input_pos, cache, n_positions, kv_type, &attention) &&
                                   is_contiguous_float(out),
                      InvalidArgument, out, "attention: %" PRId64 " tokens at position %" PRId64
                      " do not fit %" PRId64 " positions, or the tensors do not fit together",
                      angles.dim() == 3 ? int64_t{angles.size(1)} : 0,
                      is_position(input_pos) ? input_pos.const_data_ptr<int64_t>()[0] : -1, n_positions);
  ET_KERNEL_CHECK(context, resize_like(q, 1, last_size(q), out), InvalidArgument, out);
  finish(context, "attention", attention.run(q, k, v, angles, out));
  return out;
}

Tensor& swiglu_out(KernelRuntimeContext& context, const Tensor& gate, const Tensor& up, Tensor& out) {
  ET_KERNEL_CHECK_MSG(context, is_contiguous_float(gate) && is_contiguous_float(up) && is_contiguous_float(out) &&
                                   gate.numel() == up.numel(),
                      InvalidArgument, out, "swiglu: gate, up or out do not fit");
  ET_KERNEL_CHECK(context, resize_like(gate, 1, last_size(gate), out), InvalidArgument, out);
  float* const y = out.mutable_data_ptr<float>();
  const float* const g = gate.const_data_ptr<float>();
  const float* const u = up.const_data_ptr<float>();
  finish(context, "swiglu", share(gate.numel(), kValuesPerPiece, [&](int64_t begin, int64_t end) {
           std::memmove(y + begin, g + begin, static_cast<size_t>(end - begin) * sizeof(float));
           return tinyqmoe_swiglu(y + begin, u + begin, static_cast<uint64_t>(end - begin), TINYQMOE_ISA_AUTO);
         }));
  return out;
}

Tensor& add_out(KernelRuntimeContext& context, const Tensor& x, const Tensor& y, Tensor& out) {
  const bool bias = y.dim() == 1 && x.dim() > 1;
  ET_KERNEL_CHECK_MSG(context, is_contiguous_float(x) && is_contiguous_float(y) && is_contiguous_float(out) &&
                                   (bias ? y.numel() == last_size(x) : y.numel() == x.numel()),
                      InvalidArgument, out, "add: x, y or out do not fit");
  ET_KERNEL_CHECK(context, resize_like(x, 1, last_size(x), out), InvalidArgument, out);
  float* const sum = out.mutable_data_ptr<float>();
  std::memmove(sum, x.const_data_ptr<float>(), x.nbytes());
  const float* const other = y.const_data_ptr<float>();
  const uint64_t cols = static_cast<uint64_t>(last_size(x)), n = static_cast<uint64_t>(x.numel());
  finish(context, "add", bias ? tinyqmoe_add_bias(sum, other, static_cast<uint32_t>(n / cols), static_cast<uint32_t>(cols))
                              : tinyqmoe_add(sum, other, n));
  return out;
}

Tensor& last_out(KernelRuntimeContext& context, const Tensor& x, Tensor& out) {
  ET_KERNEL_CHECK_MSG(context, is_contiguous_float(x) && is_contiguous_float(out) && x.dim() == 3 && x.size(0) == 1 &&
                                   x.size(1) > 0,
                      InvalidArgument, out, "last: x or out do not fit");
  ET_KERNEL_CHECK(context, resize_like(x, 2, last_size(x), out), InvalidArgument, out);
  const int64_t cols = last_size(x);
  std::memcpy(out.mutable_data_ptr<float>(), x.const_data_ptr<float>() + (x.numel() - cols),
              static_cast<size_t>(cols) * sizeof(float));
  return out;
}

EXECUTORCH_LIBRARY(tinyqmoe, "rms_norm.out", rms_norm_out);
EXECUTORCH_LIBRARY(tinyqmoe, "rope_angles.out", rope_angles_out);
EXECUTORCH_LIBRARY(tinyqmoe, "attention.out", attention_out);
EXECUTORCH_LIBRARY(tinyqmoe, "swiglu.out", swiglu_out);
EXECUTORCH_LIBRARY(tinyqmoe, "add.out", add_out);
EXECUTORCH_LIBRARY(tinyqmoe, "last.out", last_out);

}  // namespace tinyqmoe_executorch
