// Attention's arguments, and its division into items. The loops are in layer_kernels_lanes.h.
#include <algorithm>

#include "bytes.h"
#include "kv_cache.h"
#include "layer_kernels.h"

namespace tinyqmoe {
namespace {

// An item is one token's query heads, at most kMaxQueries, of one head of the cache. Tokens vary fastest: neighbours
// read the same keys and values.
struct Plan {
  KvLayout layout;
  uint32_t queries_per_head;
  uint32_t parts_per_head;
  uint64_t items;
  uint64_t score_floats;  // of the longest item
};

bool make_plan(const tinyqmoe_attention_args* args, Plan* plan) {
  if (args == nullptr || args->cache == nullptr || !kv_layout(*args->cache, &plan->layout)) return false;
  const tinyqmoe_kv_cache& cache = *args->cache;
  const uint64_t end = uint64_t{args->position} + args->n_tokens;
  if (args->n_tokens == 0 || end > cache.context) return false;
  if (args->heads == 0 || args->heads > (1u << 20) || args->heads % cache.kv_heads != 0) return false;
  plan->queries_per_head = args->heads / cache.kv_heads;
  plan->parts_per_head = (plan->queries_per_head + kMaxQueries - 1) / kMaxQueries;
  plan->items = uint64_t{cache.kv_heads} * plan->parts_per_head * args->n_tokens;
  plan->score_floats = kMaxQueries * round_up(end, kLanes);
  return true;
}

AttentionTask make_task(const tinyqmoe_attention_args& args, const Plan& plan, uint64_t item, float* scratch) {
  const tinyqmoe_kv_cache& cache = *args.cache;
  const KvLayout& layout = plan.layout;
  const uint64_t token = item % args.n_tokens;
  const uint64_t part = item / args.n_tokens % plan.parts_per_head;
  const uint64_t head = item / args.n_tokens / plan.parts_per_head;
  const uint64_t first = head * plan.queries_per_head + part * kMaxQueries;
  const uint64_t at = (token * args.heads + first) * cache.head_dim;
  const uint64_t row = head * layout.positions;
  const uint8_t* const bytes = static_cast<const uint8_t*>(cache.bytes);

  AttentionTask task = {};
  task.q = args.q + at;
  task.y = args.y + at;
  task.keys = bytes + row * cache.head_dim * layout.item_bytes;
  task.values = bytes + layout.values + row * layout.value_stride * layout.item_bytes;
  if (cache.type == TINYQMOE_KV_INT8) {
    task.key_scales = reinterpret_cast<const float*>(bytes + layout.key_scales) + row;
    task.value_scales = reinterpret_cast<const float*>(bytes + layout.value_scales) + row;
  }
  const uint64_t left = plan.queries_per_head - part * kMaxQueries;
  task.queries = static_cast<uint32_t>(std::min<uint64_t>(left, kMaxQueries));
  task.head_dim = cache.head_dim;
  task.value_stride = static_cast<uint32_t>(layout.value_stride);
  task.length = static_cast<uint32_t>(args.position + token + 1);
  task.scores = scratch;
  task.totals = scratch + plan.score_floats;
  return task;
}

}  // namespace
}  // namespace tinyqmoe

extern "C" {

uint64_t tinyqmoe_attention_items(const tinyqmoe_attention_args* args) {
  tinyqmoe::Plan plan;
  return tinyqmoe::make_plan(args, &plan) ? plan.items : 0;
}

uint64_t tinyqmoe_attention_scratch_bytes(const tinyqmoe_attention_args* args) {
  tinyqmoe::Plan plan;
  if (!tinyqmoe::make_plan(args, &plan)) return 0;
  return sizeof(float) * (plan.score_floats + tinyqmoe::kMaxQueries * plan.layout.value_stride);
}

tinyqmoe_status tinyqmoe_attention(const tinyqmoe_attention_args* args, uint64_t item_begin, uint64_t item_end,
                                   tinyqmoe_isa isa, void* scratch) {
  tinyqmoe::Plan plan;
  if (!tinyqmoe::make_plan(args, &plan) || item_begin > item_end || item_end > plan.items) return TINYQMOE_BAD_ARGUMENT;
  if (item_begin == item_end) return TINYQMOE_OK;
  const bool given = args->q != nullptr && args->y != nullptr && args->cache->bytes != nullptr && scratch != nullptr;
  if (!given) return TINYQMOE_BAD_ARGUMENT;
  const tinyqmoe::LayerKernels* kernels = tinyqmoe::layer_kernels_for(isa);
  if (kernels == nullptr) return TINYQMOE_NO_ISA;
  for (uint64_t item = item_begin; item < item_end; ++item) {
    kernels->attend[args->cache->type - TINYQMOE_KV_FLOAT16](tinyqmoe::make_task(*args, plan, item, static_cast<float*>(scratch)));
  }
  return TINYQMOE_OK;
}

}  // extern "C"
