// SPDX-License-Identifier: Apache-2.0
// optim/factored.h on a CUDA device: the same bits. Pointers are device pointers, `cuda_stream` is
// a cudaStream_t; a cudaError_t comes back as int (0: success). Nothing waits for the device.
#pragma once
#include "optim/factored.h"

namespace lowtide::optim::cuda {

// Bytes of device memory, aligned to 16, that adafactor and block_adam need.
int64_t factored_scratch(int64_t rows, int64_t cols);

// skipped[0], on the device, becomes 1 where the functions of factored.h would return false, else
// 0.
int adafactor(float* u, float* row, float* col, const RowMatrix& g, const FactoredRule& rule,
              void* scratch, int64_t* skipped, void* cuda_stream);
int block_adam(float* factor, float* v, const RowMatrix& g, const BlockRule& rule, void* scratch,
               int64_t* skipped, void* cuda_stream);
int row_dots(double* out, const RowMatrix& x, const RowMatrix& y, void* cuda_stream);
int shear_rows(float* u, const float* c, const RowMatrix& w, void* cuda_stream);
int scale_rows(float* u, const float* c, int64_t rows, int64_t cols, void* cuda_stream);

}  // namespace lowtide::optim::cuda
