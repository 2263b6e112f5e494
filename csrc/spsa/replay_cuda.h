// SPDX-License-Identifier: Apache-2.0
// spsa/replay.h on a CUDA device: the same bits. `cuda_stream` is a cudaStream_t; a cudaError_t
// comes back as int (0: success). Nothing waits for the device.
#pragma once
#include "spsa/replay.h"

namespace lowtide::spsa::cuda {

// The weights in `tensors`, `steps` and `directions` are in device memory; the latter two are what
// resolve() gives, copied there, and stay until the kernels have run.
int replay(const std::vector<ReplayTensor>& tensors, const Step* steps, int64_t count,
           const Direction* directions, random::Dist dist, void* cuda_stream);

}  // namespace lowtide::spsa::cuda
