// Plain C++, one float at a time.
#define TARGET
#define LANE_WIDTH 1

#include "lanes.h"

namespace tinyqmoe {
namespace {

INLINE Lanes load_lanes(const uint16_t* halves) {
  float all[kLanes];
  for (uint32_t k = 0; k < kLanes; ++k) all[k] = float_of_half(halves[k]);
  return load_lanes(all);
}

INLINE Lanes load_lanes(const int8_t* levels) {
  float all[kLanes];
  for (uint32_t k = 0; k < kLanes; ++k) all[k] = static_cast<float>(levels[k]);
  return load_lanes(all);
}

}  // namespace
}  // namespace tinyqmoe

#include "layer_kernels_lanes.h"

const tinyqmoe::LayerKernels* tinyqmoe::layer_kernels_scalar() { return &kLayerKernels; }
