// SPDX-License-Identifier: Apache-2.0
#include <tuple>

#include "base/fpenv.h"
#include "spsa/fused_linear.h"
#include "torch/float_type.h"

namespace lowtide::torch_ops {
namespace {

const float* bias_of(const std::optional<Tensor>& bias, int64_t out) {
  if (!bias) return nullptr;
  STD_TORCH_CHECK(bias->numel() == out, "lowtide: a bias must have one element an output");
  return const_f32(*bias, "bias");
}

// y_plus, y_minus: (rows, out) in float32.
std::tuple<Tensor, Tensor> spsa_fused_linear(const Tensor& x_plus, const Tensor& x_minus,
                                             const Tensor& w,
                                             const std::optional<Tensor>& bias_plus,
                                             const std::optional<Tensor>& bias_minus,
                                             bool bf16_weights, double scale, int64_t seed,
                                             int64_t step, int64_t slot, int64_t param,
                                             int64_t offset, int64_t dist, double threshold) {
  STD_TORCH_CHECK(x_plus.dim() == 2 && x_minus.dim() == 2 && w.dim() == 2 &&
                      x_plus.size(0) == x_minus.size(0) && x_plus.size(1) == w.size(1) &&
                      x_minus.size(1) == w.size(1),
                  "lowtide: x_plus and x_minus must be (rows, in) and w (out, in)");
  spsa::FusedLinear f;
  f.rows = x_plus.size(0), f.in = w.size(1), f.out = w.size(0);
  f.x_type = float_type(x_plus, "x_plus", false);
  STD_TORCH_CHECK(float_type(x_minus, "x_minus", false) == f.x_type,
                  "lowtide: x_plus and x_minus must have equal dtypes");
  f.w_type = float_type(w, "w");
  f.forward_type = bf16_weights ? spsa::FloatType::bf16 : spsa::FloatType::f32;
  f.x_plus = x_plus.const_data_ptr(), f.x_minus = x_minus.const_data_ptr();
  f.w = w.const_data_ptr();
  f.bias_plus = bias_of(bias_plus, f.out), f.bias_minus = bias_of(bias_minus, f.out);
  f.offset = offset, f.scale = to_float_rn(scale), f.threshold = to_float_rn(threshold);
  f.param = static_cast<uint32_t>(param);
  Tensor plus = torch::stable::new_empty(w, {f.rows, f.out}, ScalarType::Float);
  Tensor minus = torch::stable::new_empty(w, {f.rows, f.out}, ScalarType::Float);
  f.y_plus = static_cast<float*>(plus.mutable_data_ptr());
  f.y_minus = static_cast<float*>(minus.mutable_data_ptr());
  spsa::fused_linear(f, static_cast<uint64_t>(seed), static_cast<uint64_t>(step),
                     static_cast<uint32_t>(slot), static_cast<random::Dist>(dist));
  return {plus, minus};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lowtide, m) {
  m.def(
      "spsa_fused_linear(Tensor x_plus, Tensor x_minus, Tensor w, Tensor? bias_plus, Tensor? "
      "bias_minus, bool bf16_weights, float scale, int seed, int step, int slot, int param, int "
      "offset, int dist, float threshold) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(lowtide, CPU, m) {
  m.impl("spsa_fused_linear", LT_BOX(&spsa_fused_linear));
}

}  // namespace lowtide::torch_ops
