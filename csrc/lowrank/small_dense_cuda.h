// SPDX-License-Identifier: Apache-2.0
// The part of lowrank/small_dense.h that touches a whole gradient, on a CUDA device: the same bits.
// Factorizations of the few hundred rows that come of it are the host's work: a Gram matrix of 256
// rows is half a megabyte.
#pragma once
#include "lowrank/small_dense.h"

namespace lowtide::lowrank::cuda {

// Doubles of device memory that gram needs beside its result.
int64_t gram_scratch(int64_t rows, int64_t depth);
// Pointers are device pointers, `cuda_stream` is a cudaStream_t; a cudaError_t comes back as int
// (0: success). Nothing waits for the device.
int gram(double* g, const float* y, int64_t rows, int64_t depth, double* scratch,
         void* cuda_stream);

}  // namespace lowtide::lowrank::cuda
