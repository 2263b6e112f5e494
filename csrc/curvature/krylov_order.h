// SPDX-License-Identifier: Apache-2.0
// The arithmetic of krylov.h, shared by every target.
//
// Products with a row are summed over groups of 256 elements: element k adds raw * w to lane k % 32
// of its group, in the order of k; a group's lanes times its scale (1 of floats) are added to those
// of the tile; a tile of 1024 folds its lanes by a tree and hands on a double. The tiles of a chunk
// are added in order, the chunks by the tree of base/reduce.h.
//
// Subtraction goes row by row: w = w - (coefficient * scale) * raw, each operation rounded.
#pragma once
#include "base/hd.h"
#include "curvature/krylov.h"

namespace lowtide::curvature {

constexpr int64_t kKrylovGroup = 256;
constexpr int kKrylovLanes = 32;
constexpr int64_t kKrylovTile = 1024;
constexpr int64_t kKrylovChunk = 16 * kKrylovTile;

LT_HD int64_t krylov_groups(int64_t n) { return (n + kKrylovGroup - 1) / kKrylovGroup; }

LT_HD float krylov_raw(const float* row, int64_t k) { return row[k]; }
LT_HD float krylov_raw(const uint16_t* row, int64_t k) { return bf16_to_float(row[k]); }
LT_HD float krylov_raw(const uint8_t* row, int64_t k) {
  return static_cast<float>(static_cast<int>(row[k]) - 128);
}

LT_HD double krylov_fold(float* lanes) {
  for (int w = kKrylovLanes / 2; w >= 1; w /= 2)
    for (int i = 0; i < w; ++i) lanes[i] = lanes[i] + lanes[i + w];
  return static_cast<double>(lanes[0]);
}

}  // namespace lowtide::curvature
