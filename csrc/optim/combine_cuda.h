// SPDX-License-Identifier: Apache-2.0
// optim/combine.h on a CUDA device: the same bits. Pointers in the matrix are device pointers (the
// index is not checked: that would need a copy), `cuda_stream` is a cudaStream_t; a cudaError_t
// comes back as int (0: success). Nothing waits for the device.
#pragma once
#include "optim/combine.h"

namespace lowtide::optim::cuda {

int combine(const CombineMatrix& m, const UpdateRule& rule, uint64_t seed, uint64_t step,
            void* cuda_stream);

}  // namespace lowtide::optim::cuda
