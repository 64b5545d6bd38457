// Instead of core/isa.cc: this machine as one that has AVX-512.
#include "crc32.h"
#include "kernels.h"
#include "sha256.h"

namespace tinyqmoe {

const Kernels* kernels_for(tinyqmoe_isa isa) {
  switch (isa) {
    case TINYQMOE_ISA_SCALAR: return scalar_kernels();
    case TINYQMOE_ISA_AVX2: return avx2_kernels();
    case TINYQMOE_ISA_AUTO:
    case TINYQMOE_ISA_AVX512: return avx512_kernels(true);
    default: return nullptr;
  }
}

bool has_carryless_product() { return false; }
bool has_sha256() { return false; }

}  // namespace tinyqmoe

extern "C" tinyqmoe_isa tinyqmoe_best_isa(void) { return TINYQMOE_ISA_AVX512; }
