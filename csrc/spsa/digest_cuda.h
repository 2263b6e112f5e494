// SPDX-License-Identifier: Apache-2.0
// spsa/digest.h on a CUDA device: the same sum. Pointers are device pointers, `cuda_stream` is a
// cudaStream_t; a cudaError_t comes back as int (0: success). Nothing waits for the device.
#pragma once
#include "spsa/digest.h"

namespace lowtide::spsa::cuda {

// out[0] = the digest.
int digest(uint64_t* out, const void* w, int width, int64_t n, int64_t offset, void* cuda_stream);

}  // namespace lowtide::spsa::cuda
