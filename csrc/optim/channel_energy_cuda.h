// SPDX-License-Identifier: Apache-2.0
// optim/channel_energy.h on a CUDA device: the same bits.
#pragma once
#include "optim/channel_energy.h"

namespace lowtide::optim::cuda {

// Doubles of device memory that channel_energy needs beside its result.
int64_t channel_energy_scratch(int64_t rows, int64_t cols, Channels channels);
// Pointers are device pointers, `cuda_stream` is a cudaStream_t; a cudaError_t comes back as int
// (0: success). Nothing waits for the device.
int channel_energy(double* energy, const EnergyMatrix& m, Channels channels, double* scratch,
                   void* cuda_stream);
int ordered_sum(double* sum, const double* x, int64_t n, void* cuda_stream);

}  // namespace lowtide::optim::cuda
