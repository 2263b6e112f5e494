// SPDX-License-Identifier: Apache-2.0
// random/stream.h on a CUDA device: the same bits. Pointers are device pointers, `cuda_stream` is a
// cudaStream_t; a cudaError_t comes back as int (0: success). Nothing waits for the device.
#pragma once
#include "random/stream.h"

namespace lowtide::random::cuda {

int words(uint32_t* out, int64_t n, int64_t offset, const Stream& stream, void* cuda_stream);
int sample(float* out, int64_t n, int64_t offset, const Stream& stream, Dist dist,
           void* cuda_stream);
int add_scaled(float* x, float scale, int64_t n, int64_t offset, const Stream& stream, Dist dist,
               void* cuda_stream);
// out[0] = the sum; `scratch` holds dot_scratch(n) doubles.
int64_t dot_scratch(int64_t n);
int dot(double* out, const float* x, int64_t n, int64_t offset, const Stream& stream, Dist dist,
        double* scratch, void* cuda_stream);

}  // namespace lowtide::random::cuda
