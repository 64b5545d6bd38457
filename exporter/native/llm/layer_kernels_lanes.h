// The kernels over sixteen lanes, the same text for every instruction set. The including file has made lanes.h's
// choices and added load_lanes for halves and for int8. llm.h has the definitions.
#include <cmath>
#include <limits>

namespace tinyqmoe {
namespace {

INLINE Lanes exp_lanes(Lanes x) {
  const Lanes highest = splat(88.0f);
  const Lanes shift = splat(0x1.8p+23f);
  const Lanes y = select_less(highest, x, highest, x);
  const Lanes t = y * splat(0x1.715476p+0f) + shift;
  const Lanes n = t - shift;
  const Lanes r = (y - n * splat(0x1.63p-1f)) - n * splat(-0x1.bd0106p-13f);
  Lanes p = splat(1.9875691500e-4f);  // Cephes' expf
  p = p * r + splat(1.3981999507e-3f);
  p = p * r + splat(8.3334519073e-3f);
  p = p * r + splat(4.1665795894e-2f);
  p = p * r + splat(1.6666665459e-1f);
  p = p * r + splat(5.0000001201e-1f);
  p = p * (r * r) + r + splat(1.0f);
  // Zero where it no longer counts keeps what is multiplied by it out of the subnormals, which some hosts flush.
  return select_less(x, splat(-64.0f), splat(0.0f), times_power(p, t));
}

TARGET void rms_norm(const tinyqmoe_rms_norm_args& args, uint64_t row) {
  const uint32_t whole = args.cols / kLanes * kLanes;
  const uint32_t rest = args.cols - whole;
  const float* const x = args.x + row * args.cols;
  float* const y = args.y + row * args.cols;
  const Lanes last = load_some(x + whole, rest);
  Lanes sums = splat(0.0f);
  for (uint32_t i = 0; i < whole; i += kLanes) {
    const Lanes v = load_lanes(x + i);
    sums = sums + v * v;
  }
  sums = sums + last * last;
  // IEEE 754 asks for exact rounding of a square root, so this is the same on every machine.
  const Lanes factor = splat(1.0f / std::sqrt(sum_of(sums) / static_cast<float>(args.cols) + args.eps));
  for (uint32_t i = 0; i < whole; i += kLanes) {
    store_lanes(load_lanes(x + i) * factor * load_lanes(args.weight + i), y + i);
  }
  store_some(last * factor * load_some(args.weight + whole, rest), rest, y + whole);
}

INLINE Lanes silu_times(Lanes gate, Lanes up) {
  return gate / (splat(1.0f) + exp_lanes(splat(-0.0f) - gate)) * up;
}

TARGET void swiglu(float* gate, const float* up, uint64_t n) {
  const uint64_t whole = n / kLanes * kLanes;
  for (uint64_t i = 0; i < whole; i += kLanes) {
    store_lanes(silu_times(load_lanes(gate + i), load_lanes(up + i)), gate + i);
  }
  const Lanes last = silu_times(load_some(gate + whole, n - whole), load_some(up + whole, n - whole));
  store_some(last, n - whole, gate + whole);
}

// ---- attention; T is the type of the cache, kQueries the number of queries ----

INLINE uint32_t padded_length(const AttentionTask& task) { return (task.length + kLanes - 1) / kLanes * kLanes; }

// The scores of kBlocks times sixteen positions from `position` on.
template <typename T, uint32_t kQueries, uint32_t kBlocks>
INLINE void score_blocks(const AttentionTask& task, uint32_t position, float factor) {
  const uint32_t head_dim = task.head_dim;
  const T* const keys = static_cast<const T*>(task.keys) + uint64_t{position} * head_dim;
  Lanes sums[kQueries][kBlocks];
  for (auto& row : sums) {
    for (Lanes& sum : row) sum = splat(0.0f);
  }
  for (uint32_t d = 0; d < head_dim; ++d) {
    for (uint32_t b = 0; b < kBlocks; ++b) {
      const Lanes key = load_lanes(keys + (uint64_t{b} * head_dim + d) * kLanes);
      for (uint32_t r = 0; r < kQueries; ++r) sums[r][b] = sums[r][b] + splat(task.q[r * head_dim + d]) * key;
    }
  }
  for (uint32_t b = 0; b < kBlocks; ++b) {
    for (uint32_t r = 0; r < kQueries; ++r) {
      Lanes sum = sums[r][b];
      if constexpr (sizeof(T) == 1) sum = sum * load_lanes(task.key_scales + position + b * kLanes);
      store_lanes(sum * splat(factor), task.scores + uint64_t{r} * padded_length(task) + position + b * kLanes);
    }
  }
}

template <typename T, uint32_t kQueries>
INLINE void score(const AttentionTask& task) {
  constexpr uint32_t kBlocks = kMaxQueries / kQueries;  // enough sums at a time to hide an addition's latency
  const float factor = 1.0f / std::sqrt(static_cast<float>(task.head_dim));
  uint32_t position = task.positions.begin;
  for (; position + kBlocks * kLanes <= task.positions.end; position += kBlocks * kLanes) {
    score_blocks<T, kQueries, kBlocks>(task, position, factor);
  }
  for (; position < task.positions.end; position += kLanes) score_blocks<T, kQueries, 1>(task, position, factor);
}

// Scores to exp(score - max), in place. Returns their sum.
INLINE float soften(float* scores, uint32_t length, uint32_t padded) {
  for (uint32_t j = length; j < padded; ++j) scores[j] = -std::numeric_limits<float>::infinity();
  Lanes most = load_lanes(scores);
  for (uint32_t j = kLanes; j < padded; j += kLanes) {
    const Lanes s = load_lanes(scores + j);
    most = select_less(most, s, s, most);
  }
  const Lanes top = splat(max_of(most));
  Lanes sums = splat(0.0f);
  for (uint32_t j = 0; j < padded; j += kLanes) {
    const Lanes e = exp_lanes(load_lanes(scores + j) - top);
    store_lanes(e, scores + j);
    sums = sums + e;
  }
  return sum_of(sums);
}

// Adds the weighted values of positions [begin, end), columns column to column + 16 kColumns, to the totals.
template <typename T, uint32_t kQueries, uint32_t kColumns>
INLINE void add_values(const AttentionTask& task, uint32_t begin, uint32_t end, uint32_t column) {
  const uint32_t padded = padded_length(task);
  const T* values = static_cast<const T*>(task.values) + uint64_t{begin} * task.value_stride + column;
  Lanes sums[kQueries][kColumns];
  for (auto& row : sums) {
    for (Lanes& sum : row) sum = splat(0.0f);
  }
  for (uint32_t j = begin; j < end; ++j, values += task.value_stride) {
    for (uint32_t c = 0; c < kColumns; ++c) {
      const Lanes value = load_lanes(values + c * kLanes);
      for (uint32_t r = 0; r < kQueries; ++r) {
        sums[r][c] = sums[r][c] + splat(task.scores[uint64_t{r} * padded + j]) * value;
      }
    }
  }
  for (uint32_t r = 0; r < kQueries; ++r) {
    for (uint32_t c = 0; c < kColumns; ++c) {
      float* const total = task.totals + uint64_t{r} * task.value_stride + column + c * kLanes;
      store_lanes(load_lanes(total) + sums[r][c], total);
    }
  }
}

// The weights of each query: its scores, softened.
template <typename T, uint32_t kQueries>
INLINE void weigh(const AttentionTask& task) {
  const uint32_t padded = padded_length(task);
  for (uint32_t r = 0; r < kQueries; ++r) {
    float* const scores = task.scores + uint64_t{r} * padded;
    task.sums[r] = soften(scores, task.length, padded);
    if constexpr (sizeof(T) == 1) {
      for (uint32_t j = 0; j < task.length; ++j) scores[j] *= task.value_scales[j];
    }
  }
}

template <typename T, uint32_t kQueries>
INLINE void mix(const AttentionTask& task) {
  constexpr uint32_t kColumns = kMaxQueries / kQueries;
  for (uint32_t r = 0; r < kQueries; ++r) {
    float* const totals = task.totals + uint64_t{r} * task.value_stride;
    std::memset(totals + task.columns.begin, 0, sizeof(float) * (task.columns.end - task.columns.begin));
  }
  for (uint32_t begin = 0; begin < task.length; begin += kValueBlock) {
    const uint32_t end = task.length - begin < kValueBlock ? task.length : begin + kValueBlock;
    uint32_t column = task.columns.begin;
    for (; column + kColumns * kLanes <= task.columns.end; column += kColumns * kLanes) {
      add_values<T, kQueries, kColumns>(task, begin, end, column);
    }
    for (; column < task.columns.end; column += kLanes) add_values<T, kQueries, 1>(task, begin, end, column);
  }
  const uint32_t end = task.columns.end < task.head_dim ? task.columns.end : task.head_dim;
  for (uint32_t r = 0; r < kQueries; ++r) {
    const float* const totals = task.totals + uint64_t{r} * task.value_stride;
    for (uint32_t d = task.columns.begin; d < end; ++d) task.y[r * task.head_dim + d] = totals[d] / task.sums[r];
  }
}

template <typename T, uint32_t kQueries>
TARGET void attend_queries(const AttentionTask& task) {
  const bool whole = task.step == AttentionStep::kWhole;
  if (whole || task.step == AttentionStep::kScores) score<T, kQueries>(task);
  if (whole || task.step == AttentionStep::kWeights) weigh<T, kQueries>(task);
  if (whole || task.step == AttentionStep::kValues) mix<T, kQueries>(task);
}

template <typename T>
TARGET void attend(const AttentionTask& task) {
  static_assert(kMaxQueries == 4);
  switch (task.queries) {
    case 1: return attend_queries<T, 1>(task);
    case 2: return attend_queries<T, 2>(task);
    case 3: return attend_queries<T, 3>(task);
    default: return attend_queries<T, 4>(task);
  }
}

constexpr LayerKernels kLayerKernels = {rms_norm, swiglu, {attend<uint16_t>, attend<float>, attend<int8_t>}};

}  // namespace
}  // namespace tinyqmoe
