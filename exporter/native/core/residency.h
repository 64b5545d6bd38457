// The residency manager behind tinyqmoe_acquire: what it needs from the rest of the core, and the rest from it.
#ifndef TINYQMOE_CORE_RESIDENCY_H_
#define TINYQMOE_CORE_RESIDENCY_H_

#include "tensor.h"

namespace tinyqmoe {

// On closing a tensor: with the last of its content, its expanded copy goes.
void forget(const tinyqmoe_tensor& tensor);

}  // namespace tinyqmoe
#endif  // TINYQMOE_CORE_RESIDENCY_H_
