// SPDX-License-Identifier: Apache-2.0
// lowrank/dct.h on a CUDA device: the same bits. Lines of up to kDctMostCuda values: two copies of
// a line must fit in shared memory.
#pragma once
#include "lowrank/dct.h"

namespace lowtide::lowrank::cuda {

constexpr int64_t kDctMostCuda = 20480;

// Floats of device memory that dct_power needs.
int64_t dct_power_scratch(int64_t rows, int64_t cols, Lines lines);

// x.x, index, table and the outputs are device pointers; index must ascend in [0, n), which is not
// checked. `cuda_stream` is a cudaStream_t; a cudaError_t comes back as int (0: success). Nothing
// waits for the device.
int dct_forward(float* out, const DctMatrix& x, const int32_t* index, int64_t count,
                const float* table, void* cuda_stream);
int dct_power(float* sums, const DctMatrix& x, Power power, const float* table, float* scratch,
              void* cuda_stream);
int dct_inverse(float* out, int64_t rows, int64_t cols, Lines lines, const float* low,
                const int32_t* index, int64_t count, const float* table, void* cuda_stream);

}  // namespace lowtide::lowrank::cuda
