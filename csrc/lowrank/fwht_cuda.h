// SPDX-License-Identifier: Apache-2.0
// lowrank/fwht.h on a CUDA device: the same bits. Lines of up to kFwhtMostCuda values: a line must
// fit in shared memory.
#pragma once
#include "lowrank/fwht.h"

namespace lowtide::lowrank::cuda {

constexpr int64_t kFwhtMostCuda = 40960;

// x.x, index, factors (make_fwht_factors) and the outputs are device pointers; index must ascend in
// [0, n), which is not checked. `cuda_stream` is a cudaStream_t; a cudaError_t comes back as int
// (0: success). Nothing waits for the device.
int fwht_forward(float* out, const DctMatrix& x, const float* factors, const int32_t* index,
                 int64_t count, void* cuda_stream);
int fwht_inverse(float* out, int64_t rows, int64_t cols, Lines lines, const float* low,
                 const float* factors, const int32_t* index, int64_t count, void* cuda_stream);

}  // namespace lowtide::lowrank::cuda
