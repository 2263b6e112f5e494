// SPDX-License-Identifier: Apache-2.0
// quant/gemv.h on a CUDA device: the same bits. Pointers are device pointers, `cuda_stream` is a
// cudaStream_t; a cudaError_t comes back as int (0: success). Nothing waits for the device.
#pragma once
#include "quant/gemv.h"

namespace lowtide::quant::cuda {

int gemv(float* y, const ConstGroupMatrix& w, Coding coding, const float* x, void* cuda_stream);

}  // namespace lowtide::quant::cuda
