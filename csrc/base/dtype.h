// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace lowtide {

// Element types that kernels read and write; arithmetic is always float.
enum class Dtype : int { f32 = 0, bf16 = 1 };

}  // namespace lowtide
