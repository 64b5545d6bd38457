// Attention's arguments, and its division into items. The loops are in layer_kernels_lanes.h.
#include <algorithm>

#include "bytes.h"
#include "kv_cache.h"
#include "layer_kernels.h"

namespace tinyqmoe {
namespace {

// In steps, positions whose scores are an item, and the fewest in a cache for which steps pay.
constexpr uint64_t kScorePositions = 256;
constexpr uint64_t kMinSteps = 512;

// An item is one token's query heads, at most kMaxQueries, of one head of the cache. Tokens vary fastest: neighbours
// read the same keys and values. In steps it is a part of the positions of such heads, one query, or a part of the
// columns of such heads.
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

// Query heads [first, first + queries) of a token, all of it.
AttentionTask make_task(const tinyqmoe_attention_args& args, const Plan& plan, uint64_t token, uint64_t first,
                        uint32_t queries) {
  const tinyqmoe_kv_cache& cache = *args.cache;
  const KvLayout& layout = plan.layout;
  const uint64_t at = (token * args.heads + first) * cache.head_dim;
  const uint64_t row = first / plan.queries_per_head * layout.positions;
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
  task.queries = queries;
  task.head_dim = cache.head_dim;
  task.value_stride = static_cast<uint32_t>(layout.value_stride);
  task.length = static_cast<uint32_t>(args.position + token + 1);
  task.positions = {0, task.length};
  task.columns = {0, task.value_stride};
  return task;
}

// Part `part` of all heads of a token.
AttentionTask make_part(const tinyqmoe_attention_args& args, const Plan& plan, uint64_t token, uint64_t part) {
  const uint64_t head = part / plan.parts_per_head, before = part % plan.parts_per_head * kMaxQueries;
  const uint64_t queries = std::min<uint64_t>(plan.queries_per_head - before, kMaxQueries);
  return make_task(args, plan, token, head * plan.queries_per_head + before, static_cast<uint32_t>(queries));
}

AttentionTask make_item(const tinyqmoe_attention_args& args, const Plan& plan, uint64_t item, float* scratch) {
  AttentionTask task = make_part(args, plan, item % args.n_tokens, item / args.n_tokens);
  task.scores = scratch;
  task.totals = scratch + plan.score_floats;
  task.sums = task.totals + kMaxQueries * plan.layout.value_stride;
  return task;
}

uint64_t pieces_of(uint64_t n, uint64_t piece) { return (n + piece - 1) / piece; }

// Items of a step for a whole token; what its heads share lies one after the other.
uint64_t step_items(const tinyqmoe_attention_args& args, const Plan& plan, AttentionStep step) {
  if (step == AttentionStep::kWeights) return args.heads;
  const uint64_t pieces = step == AttentionStep::kScores ? pieces_of(uint64_t{args.position} + 1, kScorePositions)
                                                         : plan.layout.value_stride / kLanes;
  return plan.items * pieces;
}

AttentionTask make_step(const tinyqmoe_attention_args& args, const Plan& plan, AttentionStep step, uint64_t item,
                        float* scratch) {
  const uint64_t pieces = step_items(args, plan, step) / plan.items;  // of a part
  const bool weights = step == AttentionStep::kWeights;
  AttentionTask task = weights ? make_task(args, plan, 0, item, 1) : make_part(args, plan, 0, item / pieces);
  const uint64_t first = static_cast<uint64_t>(task.q - args.q) / task.head_dim;
  const uint64_t padded = round_up(task.length, kLanes);
  task.step = step;
  task.scores = scratch + first * padded;
  task.totals = scratch + args.heads * padded + first * task.value_stride;
  task.sums = scratch + args.heads * (padded + task.value_stride) + first;
  const uint32_t piece = weights ? 0 : static_cast<uint32_t>(item % pieces);
  if (step == AttentionStep::kScores) {
    const uint32_t begin = piece * kScorePositions;
    task.positions = {begin, std::min<uint32_t>(task.length, begin + kScorePositions)};
  } else if (step == AttentionStep::kValues) {
    task.columns = {piece * kLanes, (piece + 1) * kLanes};
  }
  return task;
}

// What both ways of a call have in common. make(plan, item): the task of an item.
template <typename Make>
tinyqmoe_status attend(const tinyqmoe_attention_args& args, const Plan& plan, uint64_t item_begin, uint64_t item_end,
                       tinyqmoe_isa isa, const Make& make) {
  if (item_begin == item_end) return TINYQMOE_OK;
  if (args.q == nullptr || args.y == nullptr || args.cache->bytes == nullptr) return TINYQMOE_BAD_ARGUMENT;
  const LayerKernels* kernels = layer_kernels_for(isa);
  if (kernels == nullptr) return TINYQMOE_NO_ISA;
  const auto kernel = kernels->attend[args.cache->type - TINYQMOE_KV_FLOAT16];
  for (uint64_t item = item_begin; item < item_end; ++item) kernel(make(plan, item));
  return TINYQMOE_OK;
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
  return sizeof(float) * (plan.score_floats + tinyqmoe::kMaxQueries * (plan.layout.value_stride + 1));
}

tinyqmoe_status tinyqmoe_attention(const tinyqmoe_attention_args* args, uint64_t item_begin, uint64_t item_end,
                                   tinyqmoe_isa isa, void* scratch) {
  tinyqmoe::Plan plan;
  if (!tinyqmoe::make_plan(args, &plan) || item_begin > item_end || item_end > plan.items) return TINYQMOE_BAD_ARGUMENT;
  if (item_begin < item_end && scratch == nullptr) return TINYQMOE_BAD_ARGUMENT;
  return tinyqmoe::attend(*args, plan, item_begin, item_end, isa, [&](const tinyqmoe::Plan& p, uint64_t item) {
    return tinyqmoe::make_item(*args, p, item, static_cast<float*>(scratch));
  });
}

bool tinyqmoe_attention_in_steps(const tinyqmoe_attention_args* args, uint32_t n_threads) {
  tinyqmoe::Plan plan;
  if (!tinyqmoe::make_plan(args, &plan) || args->n_tokens > 1) return false;
  return args->position >= tinyqmoe::kMinSteps && n_threads > 1 && plan.items % n_threads != 0;
}

uint64_t tinyqmoe_attention_shared_bytes(const tinyqmoe_attention_args* args) {
  tinyqmoe::Plan plan;
  if (!tinyqmoe::make_plan(args, &plan) || args->n_tokens > 1) return 0;
  const uint64_t padded = tinyqmoe::round_up(uint64_t{args->position} + 1, tinyqmoe::kLanes);
  return sizeof(float) * args->heads * (padded + plan.layout.value_stride + 1);
}

uint64_t tinyqmoe_attention_step_items(const tinyqmoe_attention_args* args, tinyqmoe_attention_step step) {
  tinyqmoe::Plan plan;
  const bool exists = step >= TINYQMOE_ATTENTION_SCORES && step <= TINYQMOE_ATTENTION_VALUES;
  if (!exists || !tinyqmoe::make_plan(args, &plan) || args->n_tokens > 1) return 0;
  return tinyqmoe::step_items(*args, plan, static_cast<tinyqmoe::AttentionStep>(step));
}

tinyqmoe_status tinyqmoe_attention_do_step(const tinyqmoe_attention_args* args, tinyqmoe_attention_step step,
                                           uint64_t item_begin, uint64_t item_end, tinyqmoe_isa isa, void* shared) {
  const uint64_t items = tinyqmoe_attention_step_items(args, step);
  if (items == 0 || item_begin > item_end || item_end > items || shared == nullptr) return TINYQMOE_BAD_ARGUMENT;
  tinyqmoe::Plan plan;
  tinyqmoe::make_plan(args, &plan);
  return tinyqmoe::attend(*args, plan, item_begin, item_end, isa, [&](const tinyqmoe::Plan& p, uint64_t item) {
    return tinyqmoe::make_step(*args, p, static_cast<tinyqmoe::AttentionStep>(step), item, static_cast<float*>(shared));
  });
}

}  // extern "C"
