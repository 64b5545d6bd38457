// The definitions of llm.h, one loop a sentence. Shares nothing with the kernels.
#ifndef TINYQMOE_TESTS_LLM_REFERENCE_H_
#define TINYQMOE_TESTS_LLM_REFERENCE_H_

#include "support.h"

namespace tests::reference {

float sum16(const Floats& v);
float exponential(float x);
Floats rms_norm(const Floats& x, const Floats& weight, float eps);
Floats swiglu(const Floats& gate, const Floats& up);

// Keys and values as the cache gives them back.
struct Rows {
  std::vector<Floats> keys, values;   // a position each
  Floats key_scales, value_scales;    // empty but for int8
};

// One query head over all positions.
Floats attend(const Floats& q, const Rows& rows);

}  // namespace tests::reference

#endif  // TINYQMOE_TESTS_LLM_REFERENCE_H_
