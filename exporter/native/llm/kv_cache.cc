#include "kv_cache.h"

#include <algorithm>

#include "bytes.h"
#include "half.h"
#include "layer_kernels.h"

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

namespace tinyqmoe {
namespace {

constexpr uint32_t kMaxHeadDim = 1024;
constexpr uint32_t kMaxHeads = 1u << 16;
constexpr uint32_t kMaxContext = 1u << 24;  // with the limits above, no size comes near 2^64

float scale_of(const float* x, uint32_t n, float* factor) {
  uint32_t most_bits = 0;  // as integers, sizes have the order of floats, and a NaN is largest
  for (uint32_t i = 0; i < n; ++i) most_bits = std::max(most_bits, bits_of(x[i]) & 0x7FFFFFFFu);
  const float most = float_of(most_bits);
  const bool zero = most < 0x1p-100f;
  *factor = zero ? 0.0f : 127.0f / most;
  return zero ? 0.0f : most / 127.0f;
}

// Adding 1.5 * 2^23 rounds to nearest even and leaves the integer in the lowest bits, whatever x is.
int8_t level_of(float x) { return static_cast<int8_t>(bits_of(x + 0x1.8p+23f) & 0xFFu); }

// One head of one token: element d goes to to[d * stride].
void store_elements(const tinyqmoe_kv_cache& cache, const float* x, uint8_t* to, uint64_t stride, float* scale) {
  const uint32_t n = cache.head_dim;
  if (cache.type == TINYQMOE_KV_FLOAT32) {
    for (uint64_t d = 0; d < n; ++d) reinterpret_cast<float*>(to)[d * stride] = x[d];
  } else if (cache.type == TINYQMOE_KV_FLOAT16) {
    for (uint64_t d = 0; d < n; ++d) reinterpret_cast<uint16_t*>(to)[d * stride] = half_of(x[d]);
  } else {
    float factor;
    *scale = scale_of(x, n, &factor);
    for (uint64_t d = 0; d < n; ++d) reinterpret_cast<int8_t*>(to)[d * stride] = level_of(x[d] * factor);
  }
}

void store_head(const tinyqmoe_kv_cache& cache, const KvLayout& layout, const tinyqmoe_kv_write_args& args,
                uint64_t head) {
  uint8_t* const bytes = static_cast<uint8_t*>(cache.bytes);
  const uint64_t first = head * layout.positions;
  for (uint64_t t = 0; t < args.n_tokens; ++t) {
    const uint64_t row = first + args.position + t;
    const uint64_t from = (t * cache.kv_heads + head) * cache.head_dim;
    const uint64_t key = row / kLanes * kLanes * cache.head_dim + row % kLanes;
    store_elements(cache, args.k + from, bytes + key * layout.item_bytes, kLanes,
                   reinterpret_cast<float*>(bytes + layout.key_scales) + row);
    store_elements(cache, args.v + from, bytes + layout.values + row * layout.value_stride * layout.item_bytes, 1,
                   reinterpret_cast<float*>(bytes + layout.value_scales) + row);
  }
}

}  // namespace

bool kv_layout(const tinyqmoe_kv_cache& shape, KvLayout* layout) {
  const bool fits = shape.head_dim > 0 && shape.head_dim <= kMaxHeadDim && shape.kv_heads > 0 &&
                    shape.kv_heads <= kMaxHeads && shape.context > 0 && shape.context <= kMaxContext;
  if (!fits) return false;
  switch (shape.type) {
    case TINYQMOE_KV_FLOAT32: layout->item_bytes = 4; break;
    case TINYQMOE_KV_FLOAT16: layout->item_bytes = 2; break;
    case TINYQMOE_KV_INT8: layout->item_bytes = 1; break;
    default: return false;
  }
  layout->positions = round_up(shape.context, kLanes);
  layout->value_stride = round_up(shape.head_dim, kLanes);
  const uint64_t rows = shape.kv_heads * layout->positions;
  const uint64_t scales = shape.type == TINYQMOE_KV_INT8 ? round_up(rows * sizeof(float), 64) : 0;
  layout->values = round_up(rows * shape.head_dim * layout->item_bytes, 64);
  layout->key_scales = layout->values + round_up(rows * layout->value_stride * layout->item_bytes, 64);
  layout->value_scales = layout->key_scales + scales;
  layout->total = layout->value_scales + scales;
  return true;
}

}  // namespace tinyqmoe

extern "C" {

uint64_t tinyqmoe_kv_cache_bytes(const tinyqmoe_kv_cache* shape) {
  tinyqmoe::KvLayout layout;
  return shape != nullptr && tinyqmoe::kv_layout(*shape, &layout) ? layout.total : 0;
}

tinyqmoe_status tinyqmoe_kv_cache_write(const tinyqmoe_kv_cache* cache, const tinyqmoe_kv_write_args* args,
                                        uint32_t head_begin, uint32_t head_end) {
  tinyqmoe::KvLayout layout;
  if (cache == nullptr || args == nullptr || !tinyqmoe::kv_layout(*cache, &layout)) return TINYQMOE_BAD_ARGUMENT;
  if (head_begin > head_end || head_end > cache->kv_heads) return TINYQMOE_BAD_ARGUMENT;
  if (uint64_t{args->position} + args->n_tokens > cache->context) return TINYQMOE_BAD_ARGUMENT;
  if (args->n_tokens == 0) return TINYQMOE_OK;
  if (cache->bytes == nullptr || args->k == nullptr || args->v == nullptr) return TINYQMOE_BAD_ARGUMENT;
  for (uint64_t head = head_begin; head < head_end; ++head) tinyqmoe::store_head(*cache, layout, *args, head);
  return TINYQMOE_OK;
}

}  // extern "C"
