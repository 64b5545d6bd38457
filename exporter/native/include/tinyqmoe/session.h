/* Tiny-QMoE: a bundle that is open for text.
 *
 * A session maps the weights, holds a KV cache and a few threads, and turns tokens into logits. Two engines compute the
 * same bits: the runner, which needs nothing, and ExecuTorch, where it is linked. No exception crosses this interface. A session serves one thread at a time; sessions do not share anything but the residency of tinyqmoe.h, whose
 * budgets, memory warnings and statistics hold for their weights too. Logits have the same bits on every machine, with
 * any number of threads and however tokens are split into calls. */
#ifndef TINYQMOE_SESSION_H_
#define TINYQMOE_SESSION_H_

#include "tinyqmoe/llm.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tinyqmoe_session tinyqmoe_session;

typedef enum tinyqmoe_engine {
  TINYQMOE_ENGINE_RUNNER = 0,    /* the weights of the program, without ExecuTorch */
  TINYQMOE_ENGINE_EXECUTORCH = 1 /* the program itself; executorch/ must be linked whole, with ExecuTorch */
} tinyqmoe_engine;

/* Zero chooses the default of each field but the first two. With ExecuTorch, what the program and its pool of threads
 * decide must be zero: context, n_threads, kv_type and isa. */
typedef struct tinyqmoe_session_options {
  uint64_t struct_bytes;     /* sizeof; nothing past it is read */
  const char* bundle;        /* the folder with manifest.json */
  uint32_t context;          /* positions of the cache; 0: the bundle's, which is also the most */
  uint32_t n_threads;        /* 0: as many as the machine has; WebAssembly has one */
  uint32_t batch_tokens;     /* most tokens that are computed at once, 1 to 4096; 0: 128 */
  tinyqmoe_kv_type kv_type;  /* part of the arithmetic; 0: the bundle's */
  tinyqmoe_isa isa;
  tinyqmoe_engine engine;
  uint32_t verify;           /* not 0: first compare size and SHA-256 of the package's files with manifest.json */
} tinyqmoe_session_options;

/* *out is null unless TINYQMOE_OK is returned. Then error (may be null) holds a sentence that says what is wrong with
 * which file or name, cut to error_bytes with its final zero. BAD_PAYLOAD_CRC: `verify` found a file that is not as in
 * manifest.json. It reads all files of the package and tokenizer.json, so it is for the first time after a download. */
TINYQMOE_API tinyqmoe_status tinyqmoe_session_open(const tinyqmoe_session_options* options, tinyqmoe_session** out,
                                                   char* error, uint64_t error_bytes);

/* Appends tokens. logits: float [vocab] after the last of them, or null, which is faster. On failure no position was
 * added. BAD_ARGUMENT: no tokens, or more than the context has room for; BAD_ID: a token outside the vocabulary;
 * NON_FINITE: the network's numbers overflowed. BAD_PAYLOAD_CRC: weights that were to be expanded are damaged. */
TINYQMOE_API tinyqmoe_status tinyqmoe_session_feed(tinyqmoe_session* session, const int32_t* tokens, uint32_t n_tokens,
                                                   float* logits);

/* Appends one token. *best: the token with the highest logit, of equals the first. logits: float [vocab], or null. */
TINYQMOE_API tinyqmoe_status tinyqmoe_session_step(tinyqmoe_session* session, int32_t token, int32_t* best,
                                                   float* logits);

/* Forgets all positions from n_positions on: to say a turn again, or with 0 to begin anew. BAD_ARGUMENT: it holds fewer.
 * Memory stays; tinyqmoe_trim of tinyqmoe.h gives back expanded weights. */
TINYQMOE_API tinyqmoe_status tinyqmoe_session_trim(tinyqmoe_session* session, uint32_t n_positions);

typedef struct tinyqmoe_session_state {
  uint64_t struct_bytes; /* set by the caller to sizeof; nothing past it is written */
  uint32_t n_positions;  /* held now */
  uint32_t context;
  uint32_t vocab;
  uint32_t n_threads;
  uint64_t mapped_bytes;   /* of the files with weights: clean pages, in WebAssembly memory */
  uint64_t kv_cache_bytes;
  uint64_t buffer_bytes;   /* all other memory of size */
  uint64_t n_fed;          /* tokens since the session was opened */
  uint64_t feed_ns;        /* time they took */
} tinyqmoe_session_state;

/* BAD_ARGUMENT: null, or struct_bytes below 8. */
TINYQMOE_API tinyqmoe_status tinyqmoe_session_stats(const tinyqmoe_session* session, tinyqmoe_session_state* out);

TINYQMOE_API void tinyqmoe_session_close(tinyqmoe_session* session); /* null is fine */

#ifdef __cplusplus
}
#endif
#endif /* TINYQMOE_SESSION_H_ */
