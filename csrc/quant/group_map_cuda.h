// SPDX-License-Identifier: Apache-2.0
// quant/group_map.h on a CUDA device: the same bits. Pointers are device pointers, `cuda_stream` is
// a cudaStream_t; a cudaError_t comes back as int (0: success). Nothing waits for the device.
#pragma once
#include "quant/group_map.h"

namespace lowtide::quant::cuda {

// nonfinite[0], on the device, becomes the number of non-finite elements.
int quantize_map(const void* x, FloatType type, LevelMap map, const GroupMatrix& out,
                 const MapOptions& options, int64_t* nonfinite, void* cuda_stream);
int dequantize_map(const ConstGroupMatrix& in, LevelMap map, void* out, FloatType type,
                   void* cuda_stream);

}  // namespace lowtide::quant::cuda
