// SPDX-License-Identifier: Apache-2.0
// What the files of the fake CUDA runtime share. It stands in for libcudart under a program that
// nvcc compiled: kernels are the translated PTX of the same sources, device memory is
// emu::DeviceMemory, streams are synchronous.
//
// LT_EMU_ORDER  forward | reverse | random | random:SEED   order of threads and blocks
// LT_EMU_ARCH   80, 100, ...                               which PTX runs, when a program carries
// several
#pragma once

#include <cuda_runtime_api.h>

namespace lowtide::emu {

// Remembers the error for cudaGetLastError and returns it.
cudaError_t Report(cudaError_t error);

}  // namespace lowtide::emu
