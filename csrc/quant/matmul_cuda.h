// SPDX-License-Identifier: Apache-2.0
// quant/matmul.h on a CUDA device: the same bits. `c` and all pointers of the operands are device
// pointers, `cuda_stream` is a cudaStream_t; a cudaError_t comes back as int (0: success). Nothing
// waits for the device.
#pragma once
#include "quant/matmul_scalar.h"

namespace lowtide::quant::cuda {

// cudaErrorInvalidValue if sizes disagree or an operand is not as csrc/quant/matmul.h demands. `c`
// must not overlap.
int matmul(float* c, const Operand& a, bool ta, const Operand& b, bool tb, void* cuda_stream);

}  // namespace lowtide::quant::cuda
