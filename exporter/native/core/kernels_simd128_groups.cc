// WebAssembly: rows with a scale for each group of columns. An activation meets four rows.
#if defined(__wasm_simd128__)

#include "kernels_simd128.h"

namespace tinyqmoe {
namespace simd128 {
namespace {

struct Offsets {
  static void add(const GroupsTask& task, uint32_t begin, uint32_t end, v128_t lanes[kDotRows]) {
    for (uint32_t i = begin; i < end; i += 8) {
      const v128_t x = wasm_v128_load(task.x.whole + i);
      for (uint32_t r = 0; r < kDotRows; ++r) add_products(wasm_u16x8_load8x8(task.rows[r] + i), x, lanes + r);
    }
  }
};

// 16 bytes at a time: half a block, which a group has one or more of.
template <uint32_t kBits>
struct Packed {
  static constexpr uint32_t kPlanes = 8 / kBits;
  static constexpr uint32_t kHalf = kPackedBlock / 2;

  static void add(const GroupsTask& task, uint32_t begin, uint32_t end, v128_t lanes[kDotRows]) {
    for (uint32_t byte = begin / kPlanes; byte < end / kPlanes; byte += kHalf) {
      v128_t packed[kDotRows];
      for (uint32_t r = 0; r < kDotRows; ++r) packed[r] = wasm_v128_load(task.rows[r] + byte);
      const uint32_t in_block = byte % kPackedBlock;
      const int8_t* x = task.packed_x + uint64_t{byte - in_block} * kPlanes * 2 + in_block;
      for (uint32_t k = 0; k < kPlanes; ++k, x += 2 * kPackedBlock) {
        const v128_t first = whole8(x, x + kPackedBlock), second = whole8(x + 8, x + kPackedBlock + 8);
        for (uint32_t r = 0; r < kDotRows; ++r) {
          const v128_t offsets = plane<kBits>(packed[r], k);
          add_products(wasm_u16x8_extend_low_u8x16(offsets), first, lanes + r);
          add_products(wasm_u16x8_extend_high_u8x16(offsets), second, lanes + r);
        }
      }
    }
  }
};

template <typename Rows>
void dot_groups_of(GroupsTask* task) {
  task->put_scales(0);
  v128_t y = wasm_f32x4_const_splat(0.0f);
  for (uint32_t begin = 0, g = 0; begin < task->cols; begin += task->group_size, ++g) {
    v128_t lanes[kDotRows] = {};
    Rows::add(*task, begin, begin + task->group_size, lanes);
    const v128_t levels = wasm_i32x4_add(four_sums(lanes), wasm_v128_load(task->corrections + g * kDotRows));
    y = add_group(y, levels, task->scales + g * kDotRows);
  }
  wasm_v128_store(task->y, y);
}

}  // namespace

void dot_groups(GroupsTask* task) {
  if (task->bits == 2) return dot_groups_of<Packed<2>>(task);
  task->bits == 4 ? dot_groups_of<Packed<4>>(task) : dot_groups_of<Offsets>(task);
}

}  // namespace simd128
}  // namespace tinyqmoe

#endif  // defined(__wasm_simd128__)
