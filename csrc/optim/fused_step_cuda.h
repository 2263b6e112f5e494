// SPDX-License-Identifier: Apache-2.0
// optim/fused_step.h on a CUDA device: the same bits. Pointers in the tensors are device pointers,
// `cuda_stream` is a cudaStream_t; a cudaError_t comes back as int (0: success). Nothing waits for
// the device.
#pragma once
#include "optim/fused_step.h"

namespace lowtide::optim::cuda {

// skipped[0], on the device, becomes the number of blocks that were left alone.
int fused_step(const std::vector<StepTensor>& tensors, const StepRule& rule, uint64_t seed,
               uint64_t step, int64_t* skipped, void* cuda_stream);

}  // namespace lowtide::optim::cuda
