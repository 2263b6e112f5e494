// SPDX-License-Identifier: Apache-2.0
// spsa/low_rank.h on a CUDA device: the same bits. Weights and scratch are in device memory,
// `cuda_stream` is a cudaStream_t; a cudaError_t comes back as int (0: success). Nothing waits for
// the device.
#pragma once
#include "spsa/low_rank.h"

namespace lowtide::spsa::cuda {

// Floats of scratch for so many directions.
int64_t low_rank_scratch(const LowRankMatrix& m, int64_t directions);

int low_rank_perturb(void* out, FloatType out_type, const void* w, FloatType w_type, float scale,
                     const LowRankMatrix& m, const LowRankPoint& at, float* scratch,
                     void* cuda_stream);

// `schedule` and v_steps are in host memory; `steps` and `directions` are what resolve(schedule)
// gives, copied to the device.
int low_rank_replay(void* w, FloatType type, float scale, const LowRankMatrix& m,
                    const Schedule& schedule, const int64_t* v_steps, const Step* steps,
                    int64_t count, const Direction* directions, float* scratch, void* cuda_stream);

}  // namespace lowtide::spsa::cuda
