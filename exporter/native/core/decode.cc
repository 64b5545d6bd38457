// Whole rows: to levels, and to embeddings.
#include "bytes.h"
#include "rows.h"
#include "scales.h"

namespace tinyqmoe {
namespace {

// Levels stand in the last cols bytes of the 4 * cols bytes that they become; each is read before the floats,
// written from the front, reach it. first: the number of the first scale.
void scale_in_place(float* out, uint32_t cols, const Scales& scales, uint64_t first, uint32_t group_size) {
  char* bytes = reinterpret_cast<char*>(out);
  const char* levels = bytes + uint64_t{cols} * 3;
  for (uint32_t begin = 0; begin < cols; begin += group_size) {
    const float scale = scales[first + begin / group_size];
    const uint32_t end = cols - begin < group_size ? cols : begin + group_size;
    for (uint32_t i = begin; i < end; ++i) {
      const float value = static_cast<float>(load<int8_t>(levels + i)) * scale;
      std::memcpy(bytes + uint64_t{i} * 4, &value, sizeof value);
    }
  }
}

}  // namespace
}  // namespace tinyqmoe

extern "C" {

tinyqmoe_status tinyqmoe_decode_rows(const tinyqmoe_tensor* tensor, uint32_t row_begin, uint32_t row_end,
                                     tinyqmoe_isa isa, int8_t* levels) {
  if (tensor == nullptr || row_begin > row_end || row_end > tensor->info.rows) return TINYQMOE_BAD_ARGUMENT;
  if (row_begin == row_end) return TINYQMOE_OK;
  if (levels == nullptr) return TINYQMOE_BAD_ARGUMENT;
  const tinyqmoe::Kernels* kernels = tinyqmoe::kernels_for(isa);
  if (kernels == nullptr) return TINYQMOE_NO_ISA;
  const uint8_t bias = static_cast<uint8_t>(tensor->info.level_min);
  tinyqmoe::RowCursor cursor(*tensor, row_begin);
  return tinyqmoe::expand_rows(*tensor, *kernels, &cursor, row_end - row_begin,
                               {bias, reinterpret_cast<uint8_t*>(levels), tensor->info.cols});
}

tinyqmoe_status tinyqmoe_embedding(const tinyqmoe_embedding_args* args) {
  if (args == nullptr || args->tensor == nullptr || args->group_size == 0) return TINYQMOE_BAD_ARGUMENT;
  if (args->n_ids == 0) return TINYQMOE_OK;
  if (args->scales == nullptr || args->ids == nullptr || args->out == nullptr) return TINYQMOE_BAD_ARGUMENT;
  if (!tinyqmoe::is_scale_type(args->scale_type)) return TINYQMOE_BAD_ARGUMENT;
  const tinyqmoe::Kernels* kernels = tinyqmoe::kernels_for(args->isa);
  if (kernels == nullptr) return TINYQMOE_NO_ISA;
  const tinyqmoe_info& info = args->tensor->info;
  const uint64_t n_groups = (uint64_t{info.cols} + args->group_size - 1) / args->group_size;
  const uint8_t bias = static_cast<uint8_t>(info.level_min);
  const tinyqmoe::Scales scales = {args->scales, args->scale_type};
  float* out = args->out;
  for (uint64_t i = 0; i < args->n_ids; ++i, out += info.cols) {
    const int64_t id = args->ids[i];
    if (id < 0 || id >= int64_t{info.rows}) return TINYQMOE_BAD_ID;
    uint8_t* levels = reinterpret_cast<uint8_t*>(out) + uint64_t{info.cols} * 3;
    tinyqmoe::RowCursor cursor(*args->tensor, static_cast<uint32_t>(id));
    const tinyqmoe_status status =
        tinyqmoe::expand_rows(*args->tensor, *kernels, &cursor, 1, {bias, levels, info.cols});
    if (status != TINYQMOE_OK) return status;
    tinyqmoe::scale_in_place(out, info.cols, scales, static_cast<uint64_t>(id) * n_groups, args->group_size);
  }
  return TINYQMOE_OK;
}

}  // extern "C"
