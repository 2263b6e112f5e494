// SPDX-License-Identifier: Apache-2.0
// curvature/vectors.h on a CUDA device: the same bits (NaN payloads aside). Pointers in the lists
// and `out` are device pointers, `cuda_stream` is a cudaStream_t; a cudaError_t comes back as int
// (0: success). Nothing waits for the device, and that tensors lie apart is not checked. A launch
// takes 32 tensors.
#pragma once
#include "curvature/vectors.h"

namespace lowtide::curvature::cuda {

// Doubles of scratch memory.
int64_t dot_scratch(const std::vector<DotPair>& pairs);
int64_t fd_finish_scratch(int64_t n);

int dot(double* out, const std::vector<DotPair>& pairs, double* scratch, void* cuda_stream);
int axpby(const std::vector<AxpbyPair>& pairs, float a, float b, void* cuda_stream);
int fd_finish(double* out, const Difference& d, double* scratch, void* cuda_stream);

}  // namespace lowtide::curvature::cuda
