// The residency manager behind tinyqmoe_acquire: what it needs from the rest of the core, and the rest from it.
#ifndef TINYQMOE_CORE_RESIDENCY_H_
#define TINYQMOE_CORE_RESIDENCY_H_

#include "tensor.h"

namespace tinyqmoe {

// Counts a tensor among those in use before its first product, so that the budget is planned for all of a model.
tinyqmoe_status announce(const tinyqmoe_tensor& tensor);

// Makes the expanded copy that the budget, or the folder of files, has room for. Of an announced tensor.
void expand(const tinyqmoe_tensor& tensor);

// On closing a tensor: with the last of its content, its expanded copy goes.
void forget(const tinyqmoe_tensor& tensor);

}  // namespace tinyqmoe
#endif  // TINYQMOE_CORE_RESIDENCY_H_
