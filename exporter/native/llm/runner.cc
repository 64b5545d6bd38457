#include "runner.h"

#include <algorithm>
#include <cstring>
#include <initializer_list>

#include "bytes.h"

namespace tinyqmoe {
namespace {

constexpr uint64_t kRowsAtATime = 4;        // of norms and rotations: below this, one thread is faster
constexpr uint64_t kElementsAtATime = 4096;

// The first of several results that is no success.
tinyqmoe_status first_of(std::initializer_list<tinyqmoe_status> all) {
  const auto failed = std::find_if(all.begin(), all.end(), [](tinyqmoe_status s) { return s != TINYQMOE_OK; });
  return failed == all.end() ? TINYQMOE_OK : *failed;
}

}  // namespace

Runner::Runner(Pool* pool, const RunnerOptions& options)
    : pool_(pool), options_(options), products_(pool, options.isa) {}

tinyqmoe_status Runner::open(Bundle* bundle, std::string* error) {
  net_ = bundle->network();
  if (net_.heads % net_.kv_heads != 0 || net_.head_dim % 2 != 0 || options_.context > net_.context) {
    *error = "network: heads must be a multiple of kv_heads, head_dim even, and the context at most the bundle's";
    return TINYQMOE_BAD_ARGUMENT;
  }
  if (!find_weights(bundle, error)) return TINYQMOE_BAD_ARGUMENT;
  tinyqmoe_status status = take_memory();
  if (status == TINYQMOE_BAD_ARGUMENT) *error = "options: no cache has this type or this size";
  if (status == TINYQMOE_OK) status = products_.prepare(matrices());
  if (status == TINYQMOE_OUT_OF_MEMORY) *error = "no memory for the KV cache and the buffers";
  return status;
}

bool Runner::find_weights(Bundle* bundle, std::string* error) {
  const std::string name = "model.embed_tokens.weight";
  std::string missing;
  embedding_ = bundle->matrix(name, net_.vocab, net_.hidden);
  final_norm_ = bundle->vector("model.norm.weight", net_.hidden);
  frequencies_ = bundle->vector("rope.frequencies", net_.head_dim / 2);
  head_ = bundle->matrix("lm_head.weight", net_.vocab, net_.hidden);
  if (head_ == nullptr) head_ = embedding_;  // tied
  if (embedding_ == nullptr) missing = name;
  if (final_norm_ == nullptr) missing = "model.norm.weight";
  if (frequencies_ == nullptr) missing = "rope.frequencies";
  for (uint32_t i = 0; i < net_.layers && missing.empty(); ++i) {
    layers_.emplace_back();  // one by one: the manifest may claim more than memory holds
    find_layer(bundle, "model.layers." + std::to_string(i) + ".", &layers_.back(), &missing);
  }
  if (!missing.empty()) {
    *error = missing + " is missing, or of another shape than the network's";
    return false;
  }
  const std::string unused = bundle->unused();
  if (!unused.empty()) *error = unused + " is not known to this runner, or of another shape than the network's";
  return unused.empty();
}

bool Runner::find_layer(Bundle* bundle, const std::string& prefix, Layer* layer, std::string* missing) {
  const uint32_t queries = net_.heads * net_.head_dim, keys = net_.kv_heads * net_.head_dim;
  const struct {
    const char* name;
    Linear* out;
    uint32_t rows, cols;
  } linears[] = {{"self_attn.q_proj", &layer->q, queries, net_.hidden},
                 {"self_attn.k_proj", &layer->k, keys, net_.hidden},
                 {"self_attn.v_proj", &layer->v, keys, net_.hidden},
                 {"self_attn.o_proj", &layer->o, net_.hidden, queries},
                 {"mlp.gate_proj", &layer->gate, net_.inner, net_.hidden},
                 {"mlp.up_proj", &layer->up, net_.inner, net_.hidden},
                 {"mlp.down_proj", &layer->down, net_.hidden, net_.inner}};
  const struct {
    const char* name;
    const float** out;
    uint32_t n;
    bool optional;
  } vectors[] = {{"input_layernorm.weight", &layer->attention_norm, net_.hidden, false},
                 {"post_attention_layernorm.weight", &layer->mlp_norm, net_.hidden, false},
                 {"self_attn.q_norm.weight", &layer->q_norm, net_.head_dim, true},
                 {"self_attn.k_norm.weight", &layer->k_norm, net_.head_dim, true}};
  for (const auto& l : linears) {
    l.out->matrix = bundle->matrix(prefix + l.name + ".weight", l.rows, l.cols);
    l.out->bias = bundle->vector(prefix + l.name + ".bias", l.rows);
    if (l.out->matrix == nullptr) *missing = prefix + l.name + ".weight";
  }
  for (const auto& v : vectors) {
    *v.out = bundle->vector(prefix + v.name, v.n);
    if (*v.out == nullptr && !v.optional) *missing = prefix + v.name;
  }
  return missing->empty();
}

// Those that are multiplied, in the order of their use.
std::vector<const Matrix*> Runner::matrices() const {
  std::vector<const Matrix*> all;
  for (const Layer& layer : layers_) {
    for (const Linear* linear : {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down}) {
      all.push_back(linear->matrix);
    }
  }
  all.push_back(head_);
  return all;
}

tinyqmoe_status Runner::take_memory() {
  const tinyqmoe_kv_cache shape = {nullptr, options_.kv_type, net_.kv_heads, net_.head_dim, options_.context};
  const uint64_t cache_bytes = tinyqmoe_kv_cache_bytes(&shape);
  if (cache_bytes == 0) return TINYQMOE_BAD_ARGUMENT;
  if (!kv_memory_.reserve(cache_bytes * net_.layers)) return TINYQMOE_OUT_OF_MEMORY;
  for (uint32_t i = 0; i < net_.layers; ++i) {
    layers_[i].cache = shape;
    layers_[i].cache.bytes = static_cast<uint8_t*>(kv_memory_.data()) + i * cache_bytes;
  }

  const uint64_t queries = uint64_t{net_.heads} * net_.head_dim, keys = uint64_t{net_.kv_heads} * net_.head_dim;
  const std::pair<float**, uint64_t> parts[] = {
      {&x_, net_.hidden}, {&normed_, net_.hidden}, {&q_, queries}, {&k_, keys}, {&v_, keys}, {&attended_, queries},
      {&gate_, net_.inner}, {&up_, net_.inner}, {&cosines_, net_.head_dim / 2}, {&sines_, net_.head_dim / 2}};
  uint64_t floats = 0;
  for (const auto& [out, cols] : parts) floats += round_up(cols * options_.batch_tokens, 16);
  if (!work_.reserve(floats * sizeof(float))) return TINYQMOE_OUT_OF_MEMORY;
  float* next = static_cast<float*>(work_.data());
  for (const auto& [out, cols] : parts) {
    *out = next;
    next += round_up(cols * options_.batch_tokens, 16);
  }

  ids_.resize(options_.batch_tokens);
  attention_scratch_ = std::vector<Buffer>(pool_->n_threads());
  const uint32_t last = options_.context - 1;  // a token there sees most, so no other needs more
  const tinyqmoe_attention_args longest = {&layers_[0].cache, q_, attended_, net_.heads, last, 1};
  const bool in_steps = tinyqmoe_attention_in_steps(&longest, pool_->n_threads());
  uint64_t bytes = in_steps ? tinyqmoe_attention_shared_bytes(&longest) : 0;  // of the first, which steps share
  for (Buffer& scratch : attention_scratch_) {
    bytes = std::max(bytes, tinyqmoe_attention_scratch_bytes(&longest));
    if (!scratch.reserve(bytes)) return TINYQMOE_OUT_OF_MEMORY;
    bytes = 0;
  }
  return TINYQMOE_OK;
}

tinyqmoe_status Runner::forward(const int32_t* tokens, uint32_t n_tokens, uint32_t position, float* logits) {
  tinyqmoe_status status = embed(tokens, n_tokens);
  if (status != TINYQMOE_OK) return status;
  status = tinyqmoe_rope_angles(frequencies_, net_.head_dim / 2, position, n_tokens, cosines_, sines_);
  for (const Layer& layer : layers_) {
    if (status == TINYQMOE_OK) status = attention(layer, n_tokens, position);
    if (status == TINYQMOE_OK) status = mlp(layer, n_tokens);
  }
  if (status != TINYQMOE_OK || logits == nullptr) return status;
  status = rms_norm(x_ + uint64_t{n_tokens - 1} * net_.hidden, final_norm_, normed_, 1, net_.hidden);
  const Products::Product head = {head_, logits};
  return first_of({status, products_.multiply({normed_, 1, true}, &head, 1)});
}

tinyqmoe_status Runner::embed(const int32_t* tokens, uint32_t n_tokens) {
  std::copy(tokens, tokens + n_tokens, ids_.begin());
  return products_.embed(*embedding_, ids_.data(), n_tokens, x_);
}

// y = W x + b for up to three matrices that read the same x.
tinyqmoe_status Runner::linear(const float* x, uint32_t n_tokens, std::initializer_list<Output> outputs) {
  Products::Product products[3] = {};
  uint32_t n = 0;
  for (const Output& output : outputs) products[n++] = {output.linear->matrix, output.y};
  tinyqmoe_status status = products_.multiply({x, n_tokens, true}, products, n);
  for (const auto& [linear, y] : outputs) {
    const bool biased = status == TINYQMOE_OK && linear->bias != nullptr;
    if (biased) status = tinyqmoe_add_bias(y, linear->bias, n_tokens, linear->matrix->rows);
  }
  return status;
}

// x += o(attention(rope(qkv(norm(x))))).
tinyqmoe_status Runner::attention(const Layer& layer, uint32_t n_tokens, uint32_t position) {
  tinyqmoe_status status = rms_norm(x_, layer.attention_norm, normed_, n_tokens, net_.hidden);
  if (status == TINYQMOE_OK) status = linear(normed_, n_tokens, {{&layer.q, q_}, {&layer.k, k_}, {&layer.v, v_}});
  if (status != TINYQMOE_OK) return status;
  status = first_of({prepare_heads(q_, layer.q_norm, net_.heads, n_tokens),
                     prepare_heads(k_, layer.k_norm, net_.kv_heads, n_tokens), attend(layer, n_tokens, position)});
  if (status == TINYQMOE_OK) status = linear(attended_, n_tokens, {{&layer.o, normed_}});
  return status == TINYQMOE_OK ? tinyqmoe_add(x_, normed_, uint64_t{n_tokens} * net_.hidden) : status;
}

// The norm of each head, where a model has one, and the rotation.
tinyqmoe_status Runner::prepare_heads(float* x, const float* norm, uint32_t heads, uint32_t n_tokens) {
  tinyqmoe_status status = TINYQMOE_OK;
  if (norm != nullptr) status = rms_norm(x, norm, x, uint64_t{n_tokens} * heads, net_.head_dim);
  if (status != TINYQMOE_OK) return status;
  const tinyqmoe_rope_args args = {x, cosines_, sines_, heads, net_.head_dim};
  Failure failure;
  pool_->run(n_tokens, kRowsAtATime, [&](uint64_t begin, uint64_t end, uint32_t) {
    failure.note(tinyqmoe_rope(&args, static_cast<uint32_t>(begin), static_cast<uint32_t>(end)));
  });
  return failure.status();
}

tinyqmoe_status Runner::attend(const Layer& layer, uint32_t n_tokens, uint32_t position) {
  const tinyqmoe_kv_write_args write = {k_, v_, position, n_tokens};
  const tinyqmoe_status status = tinyqmoe_kv_cache_write(&layer.cache, &write, 0, net_.kv_heads);
  if (status != TINYQMOE_OK) return status;
  const tinyqmoe_attention_args args = {&layer.cache, q_, attended_, net_.heads, position, n_tokens};
  if (tinyqmoe_attention_in_steps(&args, pool_->n_threads())) return attend_in_steps(args);
  Failure failure;
  pool_->run(tinyqmoe_attention_items(&args), 1, [&](uint64_t begin, uint64_t end, uint32_t thread) {
    failure.note(tinyqmoe_attention(&args, begin, end, options_.isa, attention_scratch_[thread].data()));
  });
  return failure.status();
}

tinyqmoe_status Runner::attend_in_steps(const tinyqmoe_attention_args& args) {
  void* const shared = attention_scratch_[0].data();
  Failure failure;
  for (const auto step : {TINYQMOE_ATTENTION_SCORES, TINYQMOE_ATTENTION_WEIGHTS, TINYQMOE_ATTENTION_VALUES}) {
    pool_->run(tinyqmoe_attention_step_items(&args, step), 1, [&](uint64_t begin, uint64_t end, uint32_t) {
      failure.note(tinyqmoe_attention_do_step(&args, step, begin, end, options_.isa, shared));
    });
  }
  return failure.status();
}

// x += down(silu(gate(norm(x))) * up(norm(x))).
tinyqmoe_status Runner::mlp(const Layer& layer, uint32_t n_tokens) {
  tinyqmoe_status status = rms_norm(x_, layer.mlp_norm, normed_, n_tokens, net_.hidden);
  if (status == TINYQMOE_OK) status = linear(normed_, n_tokens, {{&layer.gate, gate_}, {&layer.up, up_}});
  if (status != TINYQMOE_OK) return status;
  Failure failure;
  pool_->run(uint64_t{n_tokens} * net_.inner, kElementsAtATime, [&](uint64_t begin, uint64_t end, uint32_t) {
    failure.note(tinyqmoe_swiglu(gate_ + begin, up_ + begin, end - begin, options_.isa));
  });
  status = first_of({failure.status(), linear(gate_, n_tokens, {{&layer.down, normed_}})});
  return status == TINYQMOE_OK ? tinyqmoe_add(x_, normed_, uint64_t{n_tokens} * net_.hidden) : status;
}

tinyqmoe_status Runner::rms_norm(const float* x, const float* weight, float* y, uint64_t rows, uint32_t cols) {
  const tinyqmoe_rms_norm_args args = {x, weight, y, cols, net_.eps};
  Failure failure;
  pool_->run(rows, kRowsAtATime, [&](uint64_t begin, uint64_t end, uint32_t) {
    failure.note(tinyqmoe_rms_norm(&args, begin, end, options_.isa));
  });
  return failure.status();
}

uint64_t Runner::buffer_bytes() const {
  uint64_t sum = work_.size() + products_.buffer_bytes() + ids_.size() * sizeof(int64_t);
  for (const Buffer& scratch : attention_scratch_) sum += scratch.size();
  return sum;
}

}  // namespace tinyqmoe
