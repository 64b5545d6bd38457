// Levels of a rounded matrix, changed by one at a time for as long as the loss falls (exporter/quant/descent.py).
#include <algorithm>

#include "tinyqmoe/tinyqmoe_encode.h"

namespace {

constexpr uint32_t kMost = 127;
constexpr uint32_t kTile = 16;  // rows that meet a column together, which is read from memory once for all of them

// The change of a level that lowers the loss most: -1, 1, or 0 where neither does.
int best_change(const tinyqmoe_descent_args& args, int level, float gradient, float curvature) {
  const int most = static_cast<int>(args.most);
  const float* const bits = args.bits + most;
  float best = 0;
  int found = 0;
  for (const int change : {-1, 1}) {
    if (level + change < -most || level + change > most) continue;
    const float loss = curvature - 2 * static_cast<float>(change) * gradient +
                       args.bit * (bits[level + change] - bits[level]);
    if (loss < best) {
      best = loss;
      found = change;
    }
  }
  return found;
}

// Whether a level of column j changed in the rows [begin, end).
bool descend(const tinyqmoe_descent_args& args, uint32_t begin, uint32_t end, uint32_t j) {
  const float* const column = args.gram + static_cast<uint64_t>(j) * args.columns;  // H is symmetric
  bool changed = false;
  for (uint32_t row = begin; row < end; ++row) {
    float* const gradient = args.gradient + static_cast<uint64_t>(row) * args.columns;
    int8_t* const level = args.levels + static_cast<uint64_t>(row) * args.columns + j;
    const int change = best_change(args, *level, gradient[j], column[j]);
    if (change == 0) continue;
    *level = static_cast<int8_t>(*level + change);
    for (uint32_t k = 0; k < args.columns; ++k) gradient[k] -= static_cast<float>(change) * column[k];
    changed = true;
  }
  return changed;
}

}  // namespace

extern "C" tinyqmoe_status tinyqmoe_descend(const tinyqmoe_descent_args* args) {
  if (args == nullptr || args->gradient == nullptr || args->gram == nullptr || args->bits == nullptr ||
      args->levels == nullptr || args->most == 0 || args->most > kMost) {
    return TINYQMOE_BAD_ARGUMENT;
  }
  for (uint32_t begin = 0; begin < args->rows; begin += kTile) {
    const uint32_t end = std::min(args->rows, begin + kTile);
    bool changed = true;
    for (uint32_t sweep = 0; sweep < args->sweeps && changed; ++sweep) {
      changed = false;
      for (uint32_t j = 0; j < args->columns; ++j) changed |= descend(*args, begin, end, j);
    }
  }
  return TINYQMOE_OK;
}
