// SPDX-License-Identifier: Apache-2.0
// spsa/perturb.h on a CUDA device: the same bits (NaN payloads aside). Pointers are device
// pointers, `cuda_stream` is a cudaStream_t; a cudaError_t comes back as int (0: success). Nothing
// waits for the device. One launch a tensor.
#pragma once
#include "spsa/perturb.h"

namespace lowtide::spsa::cuda {

int perturb(const std::vector<Perturbation>& tensors, uint64_t seed, uint64_t step, uint32_t slot,
            random::Dist dist, void* cuda_stream);

}  // namespace lowtide::spsa::cuda
