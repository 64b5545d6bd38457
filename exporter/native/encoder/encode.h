// What the files of the encoder share.
#ifndef TINYQMOE_ENCODER_ENCODE_H_
#define TINYQMOE_ENCODER_ENCODE_H_

#include "kernels.h"
#include "tensor.h"
#include "tinyqmoe/tinyqmoe_encode.h"

namespace tinyqmoe {

bool inside_alphabet(const int8_t* levels, uint64_t n, int32_t level_min, uint32_t n_levels);

tinyqmoe_info info_of(const tinyqmoe_encode_args& args, Codec codec, uint32_t code_bits, uint32_t cap);

// Checks 6 to 9 of FORMAT.md section 6.
tinyqmoe_status check_layout(const tinyqmoe_info& info, const DictionaryShape& shape);

}  // namespace tinyqmoe
#endif  // TINYQMOE_ENCODER_ENCODE_H_
