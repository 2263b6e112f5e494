// SPDX-License-Identifier: Apache-2.0
#include "curvature/elements.h"
#include "curvature/sums.h"
#include "curvature/vectors_table.h"

namespace lowtide::curvature {
namespace {

double dot_ref(const DotPair& t, int64_t begin, int64_t end) {
  double sums[kSums] = {};
  for (int64_t i = begin; i < end; ++i)
    sums[i % kSums] += exact_product(element(t.x, t.x_dtype, i), element(t.y, t.y_dtype, i));
  return fold_sums(sums);
}

void axpby_ref(const AxpbyPair& t, float a, float b, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i)
    put_element(t.y, t.y_dtype, i,
                axpby_at(a, element(t.y, t.y_dtype, i), b, element(t.x, t.x_dtype, i)));
}

void fd_finish_ref(double* out, const Difference& d, int64_t begin, int64_t end) {
  double squares[kSums] = {}, products[kSums] = {};
  for (int64_t i = begin; i < end; ++i) {
    const float v = (d.plus[i] - d.minus[i]) * d.scale;
    d.plus[i] = v;
    squares[i % kSums] += exact_product(v, v);
    if (d.q != nullptr) products[i % kSums] += exact_product(v, d.q[i]);
  }
  out[0] = fold_sums(squares);
  out[1] = fold_sums(products);
}

}  // namespace

const VectorsTable vectors_scalar = {dot_ref, axpby_ref, fd_finish_ref};

}  // namespace lowtide::curvature
