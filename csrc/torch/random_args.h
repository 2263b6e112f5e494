// SPDX-License-Identifier: Apache-2.0
// Addresses of random streams as the ops of several families take them.
#pragma once
#include "random/distributions.h"
#include "random/stream.h"
#include "torch/common.h"

namespace lowtide::torch_ops {

inline random::Stream stream(int64_t seed, int64_t step, int64_t slot, int64_t param,
                             int64_t role) {
  return {u64(seed), u64(step), u32(slot), u32(param), u32(role)};
}

}  // namespace lowtide::torch_ops
