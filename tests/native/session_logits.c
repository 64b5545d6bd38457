/* What an app does with a session, in plain C.
 *
 *   session_logits BUNDLE ENGINE < CALLS > LOGITS
 *
 * ENGINE is a number of session.h. A line of CALLS is a position and the tokens from there on; what the session holds
 * from there on is forgotten. The logits of each call are written as float32. Exit status 1, with the reason on stderr,
 * when the bundle does not open or a call fails. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tinyqmoe/session.h"

enum { kMaxLine = 1 << 16, kMaxTokens = 4096 };

static uint32_t read_call(char* line, uint32_t* position, int32_t* tokens) {
  uint32_t n = 0;
  char* word = strtok(line, " \n");
  *position = word != NULL ? (uint32_t)atoi(word) : 0;
  while (n < kMaxTokens && (word = strtok(NULL, " \n")) != NULL) tokens[n++] = atoi(word);
  return n;
}

static int fail(const char* what, tinyqmoe_status status, const char* why) {
  fprintf(stderr, "%s: %s: %s\n", what, tinyqmoe_status_name(status), why);
  return 1;
}

int main(int argc, char** argv) {
  static char line[kMaxLine], error[1000];
  static int32_t tokens[kMaxTokens];
  tinyqmoe_session_options options;
  tinyqmoe_session_state state;
  tinyqmoe_session* session = NULL;
  tinyqmoe_status status;
  float* logits;
  if (argc != 3) return 2;

  memset(&options, 0, sizeof options);
  options.struct_bytes = sizeof options;
  options.bundle = argv[1];
  options.engine = (tinyqmoe_engine)atoi(argv[2]);
  status = tinyqmoe_session_open(&options, &session, error, sizeof error);
  if (status != TINYQMOE_OK) return fail("open", status, error);

  state.struct_bytes = sizeof state;
  tinyqmoe_session_stats(session, &state);
  logits = (float*)malloc(state.vocab * sizeof(float));
  while (status == TINYQMOE_OK && fgets(line, sizeof line, stdin) != NULL) {
    uint32_t position;
    const uint32_t n = read_call(line, &position, tokens);
    status = tinyqmoe_session_trim(session, position);
    if (status == TINYQMOE_OK) status = tinyqmoe_session_feed(session, tokens, n, logits);
    if (status == TINYQMOE_OK) fwrite(logits, sizeof(float), state.vocab, stdout);
  }
  tinyqmoe_session_stats(session, &state);
  fprintf(stderr, "context %u, threads %u, mapped %llu, cache %llu, buffers %llu bytes, %llu tokens\n", state.context,
          state.n_threads, (unsigned long long)state.mapped_bytes, (unsigned long long)state.kv_cache_bytes,
          (unsigned long long)state.buffer_bytes, (unsigned long long)state.n_fed);
  free(logits);
  tinyqmoe_session_close(session);
  return status == TINYQMOE_OK ? 0 : fail("call", status, "see session.h");
}
