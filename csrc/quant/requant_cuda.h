// SPDX-License-Identifier: Apache-2.0
// quant/requant.h on a CUDA device: the same bits. Pointers are device pointers, `cuda_stream` is a
// cudaStream_t; a cudaError_t comes back as int (0: success). Nothing waits for the device.
#pragma once
#include "quant/requant.h"

namespace lowtide::quant::cuda {

// skipped[0], on the device, becomes the number of groups that were left as they were.
int requant_add_sr(const GroupMatrix& w, const float* delta, const RequantOptions& options,
                   int64_t* skipped, void* cuda_stream);

}  // namespace lowtide::quant::cuda
