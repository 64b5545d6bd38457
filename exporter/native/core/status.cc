#include "tinyqmoe/tinyqmoe.h"

extern "C" {

uint32_t tinyqmoe_abi_version(void) { return TINYQMOE_ABI_VERSION; }

const char* tinyqmoe_status_name(tinyqmoe_status status) {
#define NAME(s) \
  case TINYQMOE_##s: return #s
  switch (status) {
    NAME(OK);
    NAME(TRUNCATED);
    NAME(BAD_MAGIC);
    NAME(BAD_VERSION);
    NAME(BAD_HEADER_CRC);
    NAME(BAD_RESERVED);
    NAME(BAD_CODEC);
    NAME(BAD_ALPHABET);
    NAME(BAD_SHAPE);
    NAME(BAD_ENTRIES);
    NAME(BAD_SECTION);
    NAME(BAD_TABLES_CRC);
    NAME(BAD_DICTIONARY);
    NAME(BAD_INDEX);
    NAME(BAD_PADDING);
    NAME(BAD_PAYLOAD_CRC);
    NAME(BAD_CODE);
    NAME(BAD_ROW_LENGTH);
    NAME(BAD_LEVEL);
    NAME(BAD_ARGUMENT);
    NAME(OUT_OF_MEMORY);
    NAME(BUFFER_TOO_SMALL);
    NAME(NON_FINITE);
    NAME(BAD_ID);
    NAME(NO_ISA);
  }
#undef NAME
  return "UNKNOWN";
}

}  // extern "C"
