// SPDX-License-Identifier: Apache-2.0
// A matrix with its long side folded: every row of X (e x d) is added, with random signs, into two
// of `buckets` rows of S X. Its right singular subspace resembles that of X (Clarkson and Woodruff
// 2013; two places as in Kane and Nelson 2014, so that no row cancels another), and products with
// it cost buckets / e of those with X. One pass over X.
#pragma once
#include <cstdint>

#include "lowrank/floats.h"
#include "quant/matmul_scalar.h"
#include "random/philox.h"

namespace lowtide::lowrank {

// X = g' (left) or g (right); the fold is stored as g is: g.rows x buckets (left) or buckets x
// g.cols (right). Its elements are scaled by `scale`, a power of two. The order of additions is
// fixed. Signs and places have the address of `stream`, slot 1. buckets >= 3.
Floats fold(const quant::Operand& g, bool left, int64_t buckets, float scale,
            const random::Stream& stream);

}  // namespace lowtide::lowrank
