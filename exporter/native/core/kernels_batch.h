// Rows times many tokens, the same for every instruction set: rows become a tile of levels, a strip of columns at a time,
// which stays in the first cache and meets all tokens.
#ifndef TINYQMOE_CORE_KERNELS_BATCH_H_
#define TINYQMOE_CORE_KERNELS_BATCH_H_

#include <algorithm>
#include <type_traits>

#include "bytes.h"
#include "kernels.h"

namespace tinyqmoe {

// What products come to: sums, or with groups what these add up to.
template <bool kGroups>
using BatchResult = std::conditional_t<kGroups, float, int64_t>;

// Of a task's tokens and columns: what a tile multiplies at once.
template <bool kGroups>
struct BatchPart {
  const BatchTask& task;
  uint32_t begin;        // column
  uint32_t n;            // columns
  uint32_t sum_columns;  // of a sum: those of a group, or all
  uint32_t token;        // the first

  const int16_t* whole(uint32_t t) const { return task.x.whole + offset(t) / sizeof(int16_t) + begin; }
  const int8_t* high(uint32_t t) const { return task.x.high + offset(t) + begin; }
  const int8_t* low(uint32_t t) const { return task.x.low + offset(t) + begin; }
  uint64_t end_of_sum(uint64_t column) const { return std::min<uint64_t>(n, column + sum_columns); }

  // Of a token and kBatchRows rows.
  BatchResult<kGroups>* results(uint32_t t) const {
    const uint64_t at = uint64_t{token + t} * kBatchRows;
    if constexpr (kGroups) return task.y + at;
    else return task.sums + at;
  }

  // Of kBatchRows rows and the part's first group; those of the next one follow. Null without groups.
  const float* scales() const { return kGroups ? task.scales + uint64_t{begin} / sum_columns * kBatchRows : nullptr; }

 private:
  uint64_t offset(uint32_t t) const { return (token + t) * task.token_stride; }
};

// The tokens of a part that are left, kMany at a time, and the rest by halves of that.
template <uint32_t kMany, typename Tile, bool kGroups>
void add_tokens(const Tile& tile, BatchPart<kGroups>* part) {
  for (; part->token + kMany <= part->task.n_tokens; part->token += kMany) tile.template add<kMany>(*part);
  if constexpr (kMany > 1) add_tokens<kMany / 2>(tile, part);
}

// Tile holds the levels of kBatchRows rows, of at most kColumns columns.
//   fill(task, begin, n): those of n columns, and zeros past them as far as add reads
//   add<n>(part): to the results of n tokens, which are kTokens, half of it, and so on down to 1
// With groups, these begin with the columns of a tile.
template <typename Tile, bool kGroups>
void multiply_tiles(const BatchTask& task) {
  Tile tile;
  std::fill_n(BatchPart<kGroups>{task, 0, 0, 0, 0}.results(0), uint64_t{task.n_tokens} * kBatchRows, 0);
  const uint32_t columns = kGroups ? Tile::kColumns / task.group_size * task.group_size : Tile::kColumns;
  for (uint32_t begin = 0; begin < task.n; begin += columns) {
    BatchPart<kGroups> part{task, begin, std::min(columns, task.n - begin), kGroups ? task.group_size : columns, 0};
    tile.fill(task, begin, part.n);
    add_tokens<Tile::kTokens>(tile, &part);
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
