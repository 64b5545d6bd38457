// Rounding of weights to levels, with feedback of the errors (exporter/quant/feedback.py and rate.py have the formulas).
#include <algorithm>
#include <cmath>

#include "tinyqmoe/tinyqmoe_encode.h"

namespace {

constexpr uint32_t kMost = 127;

// The level of a weight in steps: the nearest, or one nearer zero where the bits that it saves are worth the loss.
float choose(float x, float bit, const float* saved, uint32_t most) {
  const float limit = static_cast<float>(most);
  const float level = std::min(std::max(std::nearbyint(x), -limit), limit);
  const float sign = static_cast<float>((level > 0) - (level < 0));
  const float loss = sign * (2 * (x - level) + sign);
  return loss < bit * saved[static_cast<int>(level) + static_cast<int>(most)] ? level - sign : level;
}

void round_row(const tinyqmoe_feedback_args& args, uint32_t row) {
  float* const rest = args.rest + static_cast<uint64_t>(row) * args.stride;
  float* const errors = args.errors + static_cast<uint64_t>(row) * args.stride;
  int8_t* const levels = args.levels + static_cast<uint64_t>(row) * args.stride;
  const float step = args.steps[row];
  for (uint32_t j = 0; j < args.columns; ++j) {
    const float* const upper = args.upper + static_cast<uint64_t>(j) * args.upper_stride;
    const float level = choose(rest[j] / step, args.bits[j], args.saved, args.most);
    const float error = (rest[j] - level * step) / upper[j];
    levels[j] = static_cast<int8_t>(level);
    errors[j] = error;
    for (uint32_t k = j + 1; k < args.columns; ++k) rest[k] -= error * upper[k];
  }
}

}  // namespace

extern "C" tinyqmoe_status tinyqmoe_round_with_feedback(const tinyqmoe_feedback_args* args) {
  if (args == nullptr || args->rest == nullptr || args->upper == nullptr || args->steps == nullptr ||
      args->bits == nullptr || args->saved == nullptr || args->levels == nullptr || args->errors == nullptr || args->most == 0 || args->most > kMost) {
    return TINYQMOE_BAD_ARGUMENT;
  }
  for (uint32_t row = 0; row < args->rows; ++row) round_row(*args, row);
  return TINYQMOE_OK;
}
