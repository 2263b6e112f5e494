// SPDX-License-Identifier: Apache-2.0
// The two halves of curvature/krylov.h on a CUDA device: the same bits.
#pragma once
#include "curvature/krylov.h"

namespace lowtide::curvature::cuda {

// Doubles of device memory that basis_dots needs.
int64_t basis_dots_scratch(int64_t rows, int64_t n);
// Pointers are device pointers, `cuda_stream` is a cudaStream_t; a cudaError_t comes back as int
// (0: success). Nothing waits for the device.
int basis_dots(double* c, const Basis& q, const float* w, double* scratch, void* cuda_stream);
// w -= Q' c with coefficients on the device, rounded to float.
int basis_subtract(float* w, const Basis& q, const double* c, void* cuda_stream);

}  // namespace lowtide::curvature::cuda
