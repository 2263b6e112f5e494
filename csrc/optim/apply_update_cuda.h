// SPDX-License-Identifier: Apache-2.0
// optim/apply_update.h on a CUDA device: the same bits. Pointers in the tensors are device
// pointers, `cuda_stream` is a cudaStream_t; a cudaError_t comes back as int (0: success). Nothing
// waits for the device.
#pragma once
#include "optim/apply_update.h"

namespace lowtide::optim::cuda {

int apply_update(const std::vector<UpdateTensor>& tensors, const UpdateRule& rule, uint64_t seed,
                 uint64_t step, void* cuda_stream);

}  // namespace lowtide::optim::cuda
