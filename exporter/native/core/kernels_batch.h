// Rows times many tokens, the same for every instruction set: rows become a tile of levels, a strip of columns at a time,
// which stays in the first cache and meets all tokens.
#ifndef TINYQMOE_CORE_KERNELS_BATCH_H_
#define TINYQMOE_CORE_KERNELS_BATCH_H_

#include <algorithm>

#include "bytes.h"
#include "kernels.h"

namespace tinyqmoe {

// Of a task's tokens and columns: where a tile's products go.
struct BatchPart {
  const BatchTask& task;
  uint32_t begin;  // column
  uint32_t n;      // columns
  uint32_t token;  // the first

  const int16_t* whole(uint32_t t) const { return task.x.whole + offset(t) / sizeof(int16_t) + begin; }
  const int8_t* high(uint32_t t) const { return task.x.high + offset(t) + begin; }
  const int8_t* low(uint32_t t) const { return task.x.low + offset(t) + begin; }
  int64_t* sums(uint32_t t, uint32_t row) const { return task.sums + uint64_t{token + t} * kBatchRows + row; }

 private:
  uint64_t offset(uint32_t t) const { return (token + t) * task.token_stride; }
};

// Tile holds the levels of kBatchRows rows, of at most kColumns columns.
//   fill(task, begin, n): those of n columns, and zeros past them as far as add reads
//   add<n>(part): to the sums of n tokens, which are kTokens or 1
template <typename Tile>
void multiply_tiles(const BatchTask& task) {
  Tile tile;
  std::fill_n(task.sums, uint64_t{task.n_tokens} * kBatchRows, 0);
  for (uint32_t begin = 0; begin < task.n; begin += Tile::kColumns) {
    const uint32_t n = std::min(Tile::kColumns, task.n - begin);
    tile.fill(task, begin, n);
    uint32_t token = 0;
    for (; token + Tile::kTokens <= task.n_tokens; token += Tile::kTokens) {
      tile.template add<Tile::kTokens>({task, begin, n, token});
    }
    for (; token < task.n_tokens; ++token) tile.template add<1>({task, begin, n, token});
  }
}

// Levels as int16, for registers of eight: what a strip's products come to still fits an int32.
struct WideTile {
  static constexpr uint32_t kColumns = 512;
  static_assert(int64_t{kColumns} * 128 * kMostActivation <= INT32_MAX);

  alignas(16) int16_t levels[kBatchRows][kColumns];

  void fill(const BatchTask& task, uint32_t begin, uint32_t n) {
    for (uint32_t r = 0; r < round_up(task.n_rows, kDotRows); ++r) {
      const uint8_t* const offsets = task.offsets[r] + begin;
      for (uint32_t i = 0; i < n; ++i) levels[r][i] = static_cast<int16_t>(offsets[i] + task.level_min);
      std::fill(levels[r] + n, levels[r] + round_up(n, 8), 0);
    }
  }
};

}  // namespace tinyqmoe
#endif  // TINYQMOE_CORE_KERNELS_BATCH_H_
