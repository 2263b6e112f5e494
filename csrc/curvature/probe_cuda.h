// SPDX-License-Identifier: Apache-2.0
// curvature/probe.h on a CUDA device: the same bits (NaN payloads aside). Pointers in the lists and
// `out` are device pointers, `cuda_stream` is a cudaStream_t; a cudaError_t comes back as int (0:
// success). Nothing waits for the device, and that tensors lie apart is not checked. A launch takes
// 32 tensors.
#pragma once
#include "curvature/probe.h"

namespace lowtide::curvature::cuda {

// Doubles of scratch memory for sign_dot.
int64_t sign_dot_scratch(const std::vector<SignedInput>& xs);

int sign_dot(double* out, const std::vector<SignedInput>& xs, const Probe& probe, double* scratch,
             void* cuda_stream);
int sign_axpy(const std::vector<SignedTarget>& xs, float scale, const Probe& probe,
              void* cuda_stream);
int sign_fill(const std::vector<SignedTarget>& xs, float scale, const Probe& probe,
              void* cuda_stream);
int sign_fma(const std::vector<SignedPair>& pairs, const Join& join, const Probe& probe,
             void* cuda_stream);

}  // namespace lowtide::curvature::cuda
