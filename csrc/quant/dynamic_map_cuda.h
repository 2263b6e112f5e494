// SPDX-License-Identifier: Apache-2.0
// quant/dynamic_map.h on a CUDA device: the same bits. Pointers are device pointers, `cuda_stream`
// is a cudaStream_t; a cudaError_t comes back as int (0: success). Nothing waits for the device.
#pragma once
#include "quant/dynamic_map.h"

namespace lowtide::quant::cuda {

// nonfinite[0], on the device, becomes the number of elements that were not finite.
int quantize_dynamic(uint8_t* codes, float* absmax, const float* x, int64_t n, bool is_signed,
                     int64_t* nonfinite, void* cuda_stream);
int dequantize_dynamic(float* x, const uint8_t* codes, const float* absmax, int64_t n,
                       bool is_signed, void* cuda_stream);

}  // namespace lowtide::quant::cuda
