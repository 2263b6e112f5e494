// SPDX-License-Identifier: Apache-2.0
// curvature/ce_rows.h on a CUDA device: the same bits.
#pragma once
#include "curvature/ce_rows.h"

namespace lowtide::curvature::cuda {

// Pointers are device pointers, `cuda_stream` is a cudaStream_t; a cudaError_t comes back as int
// (0: success). Nothing waits for the device.
int ce_product(float* y, const CeRows& a, void* cuda_stream);
int ce_cumulant(float* y, const CeRows& a, void* cuda_stream);
int ce_diagonal(float* y, const CeRows& a, void* cuda_stream);
int ce_weighted(float* y, const CeRows& a, void* cuda_stream);
int ce_trace(float* y, const CeRows& a, void* cuda_stream);

}  // namespace lowtide::curvature::cuda
