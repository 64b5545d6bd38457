/* Tiny-QMoE core: the C interface of the TQLZ codec and its products (exporter/codec/FORMAT.md).
 *
 * No exception crosses this interface, nothing here starts a thread, and the inner loops do not
 * allocate. A tensor borrows its bytes: they must outlive it. Functions that take a const tensor may be
 * called from several threads at once; callers split work by rows. Every implementation
 * (scalar, AVX2, AVX-512, NEON) gives the same bits. The encoder has a header of its own, tinyqmoe_encode.h. */
#ifndef TINYQMOE_TINYQMOE_H_
#define TINYQMOE_TINYQMOE_H_

#include <stdbool.h>
#include <stdint.h>

#if defined(_WIN32)
#define TINYQMOE_API
#else
#define TINYQMOE_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define TINYQMOE_ABI_VERSION 6 /* 6: scales in 16 bits */

/* Pinned values: golden-error vectors and other languages name them. */
typedef enum tinyqmoe_status {
  TINYQMOE_OK = 0,
  TINYQMOE_TRUNCATED = 1,
  TINYQMOE_BAD_MAGIC = 2,
  TINYQMOE_BAD_VERSION = 3,
  TINYQMOE_BAD_HEADER_CRC = 4,
  TINYQMOE_BAD_RESERVED = 5,
  TINYQMOE_BAD_CODEC = 6,
  TINYQMOE_BAD_ALPHABET = 7,
  TINYQMOE_BAD_SHAPE = 8,
  TINYQMOE_BAD_ENTRIES = 9,
  TINYQMOE_BAD_SECTION = 10,
  TINYQMOE_BAD_TABLES_CRC = 11,
  TINYQMOE_BAD_DICTIONARY = 12,
  TINYQMOE_BAD_INDEX = 13,
  TINYQMOE_BAD_PADDING = 14,
  TINYQMOE_BAD_PAYLOAD_CRC = 15,
  TINYQMOE_BAD_CODE = 16,
  TINYQMOE_BAD_ROW_LENGTH = 17,
  TINYQMOE_BAD_LEVEL = 18,
  /* Errors of the call, not of the bytes. */
  TINYQMOE_BAD_ARGUMENT = 64,
  TINYQMOE_OUT_OF_MEMORY = 65,
  TINYQMOE_BUFFER_TOO_SMALL = 66,
  TINYQMOE_NON_FINITE = 67,   /* an activation is NaN or infinite */
  TINYQMOE_BAD_ID = 68,       /* an embedding id outside [0, rows) */
  TINYQMOE_NO_ISA = 69        /* this machine lacks the instruction set asked for */
} tinyqmoe_status;

typedef enum tinyqmoe_isa {
  TINYQMOE_ISA_AUTO = 0, /* the fastest this machine has */
  TINYQMOE_ISA_SCALAR = 1,
  TINYQMOE_ISA_AVX2 = 2,
  TINYQMOE_ISA_NEON = 3,         /* Armv8.0 */
  TINYQMOE_ISA_NEON_DOTPROD = 4, /* Armv8.2 sdot */
  TINYQMOE_ISA_AVX512 = 5,       /* with BW, VL and VNNI */
  TINYQMOE_ISA_SIMD128 = 6,      /* WebAssembly */
  TINYQMOE_ISA_NEON_I8MM = 7     /* Armv8.6 smmla, and sdot */
} tinyqmoe_isa;

typedef struct tinyqmoe_tensor tinyqmoe_tensor;

typedef struct tinyqmoe_info {
  uint8_t codec;
  uint8_t code_bits;
  uint8_t cap;
  int8_t level_min;
  uint32_t n_levels;
  uint32_t rows;
  uint32_t cols;
  uint32_t n_entries;
  uint32_t header_crc32;
  uint64_t payload_bytes;
  uint64_t total_bytes;
} tinyqmoe_info;

#define TINYQMOE_VERIFY_PAYLOAD 1u /* flag of tinyqmoe_open: also check the payload's CRC and every row */

TINYQMOE_API uint32_t tinyqmoe_abi_version(void);
TINYQMOE_API const char* tinyqmoe_status_name(tinyqmoe_status status); /* "BAD_MAGIC", never null */
TINYQMOE_API tinyqmoe_isa tinyqmoe_best_isa(void);
TINYQMOE_API uint32_t tinyqmoe_crc32(uint32_t crc, const void* bytes, uint64_t n_bytes); /* as zlib's crc32 */

/* Checks the blob (FORMAT.md section 6) and expands its dictionary; equal dictionaries share one table.
 * *out is null unless TINYQMOE_OK is returned. */
TINYQMOE_API tinyqmoe_status tinyqmoe_open(const void* bytes, uint64_t n_bytes, uint32_t flags,
                                           tinyqmoe_tensor** out);
TINYQMOE_API void tinyqmoe_close(tinyqmoe_tensor* tensor); /* null is fine */
TINYQMOE_API void tinyqmoe_get_info(const tinyqmoe_tensor* tensor, tinyqmoe_info* info);

/* Functions that read rows return BAD_CODE, BAD_ROW_LENGTH, BAD_LEVEL or BAD_PADDING (or BAD_INDEX, when the bytes changed
 * after they were opened) for the first bad row; what they have written by then is unspecified. Products check the levels
 * of codec raw once for an open tensor, 32 rows at a time, and not at all where TINYQMOE_VERIFY_PAYLOAD did: of levels
 * that change afterwards, results are unspecified. */

/* levels: int8 [row_end - row_begin, cols], contiguous. */
TINYQMOE_API tinyqmoe_status tinyqmoe_decode_rows(const tinyqmoe_tensor* tensor, uint32_t row_begin,
                                                  uint32_t row_end, tinyqmoe_isa isa, int8_t* levels);

/* How the scales of a matrix are stored. UE6M10 is unsigned, 16 bits: code 0 is 0, and any other code with exponent E, its
 * upper 6 bits, and mantissa M, its lower 10, is 2^(E - 47) * (1 + M / 1024). Every such value is a float32, in which all
 * is computed. */
typedef enum tinyqmoe_scale_type {
  TINYQMOE_SCALES_FLOAT32 = 0,
  TINYQMOE_SCALES_UE6M10 = 1,
} tinyqmoe_scale_type;

typedef struct tinyqmoe_embedding_args {
  const tinyqmoe_tensor* tensor;
  const void* scales; /* [rows, ceil(cols / group_size)], on a multiple of the bytes of one */
  tinyqmoe_scale_type scale_type;
  uint32_t group_size; /* columns of a scale; above cols: one a row */
  tinyqmoe_isa isa;
  const int64_t* ids;  /* [n_ids], each a row of the tensor */
  uint64_t n_ids;
  float* out;          /* [n_ids, cols]: level * scale */
} tinyqmoe_embedding_args;

TINYQMOE_API tinyqmoe_status tinyqmoe_embedding(const tinyqmoe_embedding_args* args);

/* Bytes of one token of quantized activations, a multiple of 64. cols: at most 65535. */
TINYQMOE_API uint64_t tinyqmoe_quantized_bytes(uint32_t cols);

/* x16: symmetric int16 per token. a = max |x|; if a < 2^-100: scale 0 and all zero; else
 * q = round_half_even(x * (32512 / a)), scale = a / 32512; all in float32 without contraction. So q is in
 * [-32512, 32512], and q = 256 * high + low with high = (q + 128) >> 8 in [-127, 127] and low in [-128, 127].
 * x: float [n_tokens, cols]; quantized: 64-byte aligned, tinyqmoe_quantized_bytes a token, which begin with q as
 * int16 [cols]; what follows is the core's own, and differs between versions of it. x_scales: float [n_tokens]. */
TINYQMOE_API tinyqmoe_status tinyqmoe_quantize_x16(const float* x, uint32_t n_tokens, uint32_t cols, tinyqmoe_isa isa,
                                                   void* quantized, float* x_scales);

/* Bytes of scratch one call of tinyqmoe_linear_* needs. */
TINYQMOE_API uint64_t tinyqmoe_linear_scratch_bytes(const tinyqmoe_tensor* tensor, uint32_t n_tokens);

/* Rows [row_begin, row_end) of y = W x: all but the activations. */
typedef struct tinyqmoe_linear_args {
  const tinyqmoe_tensor* tensor;
  const void* scales;     /* [rows, ceil(cols / group_size)], on a multiple of the bytes of one */
  tinyqmoe_scale_type scale_type;
  uint32_t group_size;    /* columns of a scale; above cols: one a row */
  uint32_t n_tokens;
  uint32_t row_begin;
  uint32_t row_end;
  tinyqmoe_isa isa;
  void* scratch;          /* 64-byte aligned, for this call only */
  uint64_t scratch_bytes; /* at least tinyqmoe_linear_scratch_bytes */
  float* y;               /* [n_tokens, rows]; only columns row_begin..row_end are written */
} tinyqmoe_linear_args;

/* Products with the activations of tinyqmoe_quantize_x16. Levels may be any int8.
 * acc is the exact integer sum of level * q over a group, and (float)acc is that integer rounded once, to the nearest
 * float32, ties to even; it may need more than 32 bits.
 * One group per row: y = (float)acc * (x_scale * scale).
 * More groups: y = x_scale * sum_g((float)acc_g * scale_g), summed in float32 from 0.0f and group 0 up, without
 * contraction. */
TINYQMOE_API tinyqmoe_status tinyqmoe_linear_x16(const tinyqmoe_linear_args* args, const void* quantized,
                                                 const float* x_scales);

/* The same with float activations x: float [n_tokens, cols]. The order of the float sums is fixed (eight interleaved
 * partial sums a group, see core/linear.h), so here too every implementation agrees. */
TINYQMOE_API tinyqmoe_status tinyqmoe_linear_f32(const tinyqmoe_linear_args* args, const float* x);

/* Residency: where the weights of a product lie.
 *
 * A coded tensor can be multiplied straight from its codes, or from an expanded copy: the same levels of 2, 4 or 8 bits,
 * which is faster and mostly larger. Every product has the same bits either way. One manager a process (a copy of this
 * library) holds the copies, under the content of the 64-byte header, which has the CRCs of all that follows. All these
 * functions may be called from any thread at any time. Nothing expands until a budget or a folder is set. */

/* Anonymous memory that expanded copies may take, in bytes; 0 (the default): none, UINT64_MAX: all expand. What saves
 * most time a byte is expanded first, among equals what is used first. Lowering it frees at once what no product uses,
 * and the rest when its product ends. */
TINYQMOE_API void tinyqmoe_set_budget(uint64_t bytes);

/* For memory warnings. Frees expanded copies of at least n_bytes, or all of them, those that save least first, and
 * lowers the budget to what is kept, so that they do not come back. A copy in use is freed when its product ends.
 * *freed (may be null): the bytes of these copies. Mapped files are not touched: their pages are clean. */
TINYQMOE_API void tinyqmoe_trim(uint64_t n_bytes, uint64_t* freed);

/* Copies that the budget does not hold are kept as files in this folder, which must exist, and are mapped: clean pages.
 * Files are written whole or not at all, checked in full when they are opened, used again at the next start, and
 * replaced when they are damaged. Where that fails (a full disk) the tensor is multiplied from its codes, and
 * file_failures counts it. Null (the default): no files. BAD_ARGUMENT: a path of more than 1023 bytes, or
 * any in WebAssembly, which maps no files. */
TINYQMOE_API tinyqmoe_status tinyqmoe_set_cache_dir(const char* path);

/* Memory that clean pages of weights may take, in bytes; UINT64_MAX (the default): the system decides. When what the
 * products read, in turn, does not fit, then a part of the pages is pinned, and the rest is prefetched and evicted in
 * blocks of at most 4 MiB (tinyqmoe_form_next_rows), so that a token reads little more than what is missing. What saves
 * most when it is expanded is pinned first. What was read before this call does not
 * count: call it again after another model was loaded. */
TINYQMOE_API void tinyqmoe_set_clean_budget(uint64_t bytes);

typedef struct tinyqmoe_residency_stats {
  uint64_t struct_bytes; /* set by the caller to sizeof; nothing past it is written */
  uint64_t budget_bytes;
  uint64_t clean_budget_bytes;
  uint64_t dirty_bytes;       /* anonymous, held now, copies whose product has not ended included */
  uint64_t dirty_peak_bytes;
  uint64_t file_bytes;        /* mapped now, of cache files */
  uint64_t tensors_known;     /* open, and acquired at least once: the sum of the next four */
  uint64_t tensors_raw;       /* nothing to expand */
  uint64_t tensors_expanded;
  uint64_t tensors_from_file;
  uint64_t tensors_streamed;
  uint64_t expansions;        /* done since the start, into memory or a file */
  uint64_t products_raw;
  uint64_t products_from_codes;
  uint64_t products_from_forms;
  uint64_t file_failures;     /* tensors that have no cache file since the folder was set, though they should */
  uint64_t code_bytes_read;   /* by products from codes since the start */
  uint64_t pinned_bytes;      /* clean; 0 without a clean budget */
  uint64_t given_back_bytes;  /* clean, evicted since the start, to be read again */
} tinyqmoe_residency_stats;

/* BAD_ARGUMENT: null, or struct_bytes below 8. */
TINYQMOE_API tinyqmoe_status tinyqmoe_stats(tinyqmoe_residency_stats* out);

typedef struct tinyqmoe_form tinyqmoe_form;

/* What to multiply with: an expanded copy, or the tensor itself. Acquire before a product, in one thread, and release
 * when all its parts are done; the tensor must stay open until then. May expand the tensor, which takes as long as
 * decoding it; no other tensor waits. OUT_OF_MEMORY only if not even the handle can be had. BAD_PAYLOAD_CRC, BAD_CODE or
 * another status of damaged bytes: it was to be expanded, which found them. */
TINYQMOE_API tinyqmoe_status tinyqmoe_acquire(const tinyqmoe_tensor* tensor, tinyqmoe_form** form);

/* The threads of a host: run calls work(context, part) once for each part below n_parts, in any threads and order, and
 * returns when all have returned. */
typedef struct tinyqmoe_threads {
  void* host; /* what run is called with */
  void (*run)(void* host, uint64_t n_parts, void (*work)(void* context, uint64_t part), void* context);
} tinyqmoe_threads;

/* As tinyqmoe_acquire, where all threads of the host expand the tensor together. Null: the calling one. */
TINYQMOE_API tinyqmoe_status tinyqmoe_acquire_with_threads(const tinyqmoe_tensor* tensor, const tinyqmoe_threads* threads,
                                                           tinyqmoe_form** form);
TINYQMOE_API const tinyqmoe_tensor* tinyqmoe_form_tensor(const tinyqmoe_form* form);

/* The rows to multiply next, until it returns false: all at once, or under a clean budget a block of them, whose pages
 * are evicted before those of the block after the next are prefetched. For one thread; the parts of a block may be shared among several. */
TINYQMOE_API bool tinyqmoe_form_next_rows(tinyqmoe_form* form, uint32_t* begin, uint32_t* end);
TINYQMOE_API void tinyqmoe_release(tinyqmoe_form* form); /* null is fine */

#ifdef __cplusplus
}
#endif
#endif /* TINYQMOE_TINYQMOE_H_ */
