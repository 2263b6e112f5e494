// SPDX-License-Identifier: Apache-2.0
// y = W x for a packed matrix and one vector: a linear layer at batch 1. Numerics: gemv_scalar.h,
// the same bits on every target and for any number of threads.
//
// Must move the codes and scales once; at more than one vector quant/matmul.h is the faster.
#pragma once
#include <cstdint>

#include "quant/group_codec.h"
#include "quant/group_map_scalar.h"

namespace lowtide::quant {

// What a code means: an integer from a zero point, or a level of NF4 (4 bits, no zero point).
enum class Coding : int { integer = 0, nf4 = 1 };

// y: w.shape.rows, x: w.shape.cols floats; apart. Throws lowtide::Error on an impossible argument.
void gemv(float* y, const ConstGroupMatrix& w, Coding coding, const float* x);

}  // namespace lowtide::quant
