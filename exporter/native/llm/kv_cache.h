// Where the parts of a layer's cache lie (llm.h).
#ifndef TINYQMOE_LLM_KV_CACHE_H_
#define TINYQMOE_LLM_KV_CACHE_H_

#include <cstdint>

#include "tinyqmoe/llm.h"

namespace tinyqmoe {

struct KvLayout {
  uint64_t item_bytes;    // of one key or value element
  uint64_t positions;     // context rounded up to 16
  uint64_t value_stride;  // head_dim rounded up to 16
  uint64_t values;        // offset of this part; keys are at 0
  uint64_t key_scales;
  uint64_t value_scales;
  uint64_t total;
};

// False for a shape that no cache has.
bool kv_layout(const tinyqmoe_kv_cache& shape, KvLayout* layout);

}  // namespace tinyqmoe
#endif  // TINYQMOE_LLM_KV_CACHE_H_
