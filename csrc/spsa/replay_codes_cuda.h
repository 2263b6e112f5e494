// SPDX-License-Identifier: Apache-2.0
// spsa/replay_codes.h on a CUDA device: the same bits. `cuda_stream` is a cudaStream_t; a
// cudaError_t comes back as int (0: success). Nothing waits for the device.
#pragma once
#include "spsa/replay_codes.h"

namespace lowtide::spsa::cuda {

// Everything the tensors point to, `steps` and `directions` are in device memory; the latter two
// are what resolve() gives, copied there, and stay until the kernels have run.
int replay_codes(const std::vector<CodesTensor>& tensors, const Step* steps, int64_t count,
                 const Direction* directions, random::Dist dist, void* cuda_stream);

}  // namespace lowtide::spsa::cuda
