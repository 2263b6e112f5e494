// SPDX-License-Identifier: Apache-2.0
// The scalar definition: one element at a time, obviously right, kept for ever as the oracle.
#include "curvature/krylov_order.h"
#include "curvature/krylov_table.h"

namespace lowtide::curvature {
namespace {

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <class T>
void dots_of(double* c, const Basis& q, const float* w, int64_t begin, int64_t end) {
  for (int64_t i = 0; i < q.rows; ++i) {
    const T* row = static_cast<const T*>(q.data) + i * q.n;
    for (int64_t tile = begin; tile < end; tile += kKrylovTile) {
      float total[kKrylovLanes] = {};
      for (int64_t g = tile; g < smaller(end, tile + kKrylovTile); g += kKrylovGroup) {
        float lane[kKrylovLanes] = {};
        for (int64_t k = g; k < smaller(end, g + kKrylovGroup); ++k)
          lane[k % kKrylovLanes] += krylov_raw(row, k) * w[k];
        const float scale =
            q.type == BasisType::int8 ? q.scale[i * krylov_groups(q.n) + g / kKrylovGroup] : 1.0f;
        for (int l = 0; l < kKrylovLanes; ++l) total[l] += scale * lane[l];
      }
      c[i] += krylov_fold(total);
    }
  }
}

template <class T>
void subtract_of(float* w, const Basis& q, const float* c, int64_t begin, int64_t end) {
  for (int64_t i = 0; i < q.rows; ++i) {
    const T* row = static_cast<const T*>(q.data) + i * q.n;
    for (int64_t k = begin; k < end; ++k) {
      const float scale =
          q.type == BasisType::int8 ? q.scale[i * krylov_groups(q.n) + k / kKrylovGroup] : 1.0f;
      w[k] = w[k] - (c[i] * scale) * krylov_raw(row, k);
    }
  }
}

void dots_ref(double* c, const Basis& q, const float* w, int64_t begin, int64_t end) {
  if (q.type == BasisType::f32) return dots_of<float>(c, q, w, begin, end);
  if (q.type == BasisType::bf16) return dots_of<uint16_t>(c, q, w, begin, end);
  dots_of<uint8_t>(c, q, w, begin, end);
}

void subtract_ref(float* w, const Basis& q, const float* c, int64_t begin, int64_t end) {
  if (q.type == BasisType::f32) return subtract_of<float>(w, q, c, begin, end);
  if (q.type == BasisType::bf16) return subtract_of<uint16_t>(w, q, c, begin, end);
  subtract_of<uint8_t>(w, q, c, begin, end);
}

}  // namespace

const KrylovTable krylov_scalar = {dots_ref, subtract_ref};

}  // namespace lowtide::curvature
