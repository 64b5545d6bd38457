/* Tiny-QMoE encoder: the C interface of what rounds weights and writes TQLZ payloads (exporter/codec/FORMAT.md). An app
 * that only reads them links tinyqmoe_core alone; these functions are in tinyqmoe_encoder. */
#ifndef TINYQMOE_TINYQMOE_ENCODE_H_
#define TINYQMOE_TINYQMOE_ENCODE_H_

#include "tinyqmoe/tinyqmoe.h"

#ifdef __cplusplus
extern "C" {
#endif

/* counts: uint64 [256], counts[level + 128]. */
TINYQMOE_API tinyqmoe_status tinyqmoe_count_levels(const int8_t* levels, uint64_t n, uint64_t* counts);

typedef struct tinyqmoe_encode_args {
  const int8_t* levels; /* [rows, cols] */
  uint32_t rows;
  uint32_t cols;
  int8_t level_min;
  uint32_t n_levels;
  uint32_t code_bits;   /* raw only */
  uint8_t* payload;     /* lzw: may be null, then only the sizes are computed */
  uint64_t payload_capacity;
} tinyqmoe_encode_args;

typedef struct tinyqmoe_encode_dictionary {
  uint32_t cap;
  uint32_t core_first;  /* offset from level_min of the first level of the core */
  uint32_t n_core;
  uint32_t n_entries;
  const uint8_t* bytes; /* as in FORMAT.md section 3 */
  uint64_t n_bytes;
} tinyqmoe_encode_dictionary;

/* How often the phrases of a dictionary occur: counts: uint64 [n_entries]. Of its bytes only the tree is read. */
TINYQMOE_API tinyqmoe_status tinyqmoe_count_phrases(const tinyqmoe_encode_args* args,
                                                    const tinyqmoe_encode_dictionary* dictionary, uint64_t* counts);

/* Codes rows with the dictionary. row_bytes: uint32 [rows]; *payload_bytes: the exact size. BAD_CODE: a phrase without
 * a codeword; BAD_LEVEL: a level outside the alphabet; BAD_SECTION: the payload would pass 2^32 - 1 bytes; parameters
 * as on opening (BAD_CODEC to BAD_ENTRIES, BAD_DICTIONARY). */
TINYQMOE_API tinyqmoe_status tinyqmoe_encode_lzw(const tinyqmoe_encode_args* args,
                                                 const tinyqmoe_encode_dictionary* dictionary, uint32_t* row_bytes,
                                                 uint64_t* payload_bytes);

/* Packs levels as level - level_min, each row to a whole number of bytes. */
TINYQMOE_API tinyqmoe_status tinyqmoe_encode_raw(const tinyqmoe_encode_args* args);

/* Packs three levels, five to a byte. */
TINYQMOE_API tinyqmoe_status tinyqmoe_encode_base3(const tinyqmoe_encode_args* args);

/* Some columns of a matrix that is rounded to levels. All matrices have rows of `stride` values, of which a call works on
 * the first `columns`. */
typedef struct tinyqmoe_feedback_args {
  float* rest;            /* [rows]: what is left of the weights; it is used up */
  uint32_t rows;
  uint32_t columns;
  uint64_t stride;
  const float* upper;     /* [columns, upper_stride]: U, the factor of the inverse Gram matrix */
  uint64_t upper_stride;
  const float* steps;     /* [rows], above zero */
  const float* bits;      /* [columns]: what a bit is worth, in squared steps */
  uint32_t most;          /* the largest level, from 1 to 127; the smallest is -most */
  const float* saved;     /* [2 * most + 1]: the bits that one step nearer zero saves, by level from -most up */
  int8_t* levels;         /* [rows], from -most to most */
  float* errors;          /* [rows]: errors divided by the diagonal of U */
} tinyqmoe_feedback_args;

/* Rounds columns one after the other; the error of each is fed back to those that follow it in this call. Weights and
 * factor must be finite. */
TINYQMOE_API tinyqmoe_status tinyqmoe_round_with_feedback(const tinyqmoe_feedback_args* args);

/* A matrix of levels [rows, columns], and its loss (u - q) H (u - q)^T row by row, u being the weights in steps. */
typedef struct tinyqmoe_descent_args {
  float* gradient;        /* [rows, columns]: (u - q) H; it follows the levels */
  int8_t* levels;         /* [rows, columns], from -most to most: q */
  uint32_t rows;
  uint32_t columns;
  const float* gram;      /* [columns, columns]: H */
  uint32_t most;          /* from 1 to 127 */
  const float* bits;      /* [2 * most + 1]: the bits of each level, from -most up */
  float bit;              /* what a bit is worth, as a loss */
  uint32_t sweeps;        /* over all columns, at most */
} tinyqmoe_descent_args;

/* Changes levels by one, column after column, where that lowers the loss and the worth of the bits together. */
TINYQMOE_API tinyqmoe_status tinyqmoe_descend(const tinyqmoe_descent_args* args);

#ifdef __cplusplus
}
#endif
#endif /* TINYQMOE_TINYQMOE_ENCODE_H_ */
