// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "spsa/digest.h"
#include "torch/common.h"

namespace lowtide::torch_ops {

// Bytes of an element.
inline int digest_width(const Tensor& w) {
  const auto width = static_cast<int>(w.element_size());
  STD_TORCH_CHECK(is_here(w) && w.is_contiguous() && (width == 1 || width == 2 || width == 4),
                  "lowtide: w must be a contiguous ", kHere,
                  " tensor of 1-, 2- or 4-byte elements");
  return width;
}

}  // namespace lowtide::torch_ops
