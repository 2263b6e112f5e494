// SPDX-License-Identifier: Apache-2.0
#include "spsa/fused_linear.h"

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "base/parallel.h"
#include "quant/matmul.h"
#include "spsa/perturb_scalar.h"

namespace lowtide::spsa {
namespace {

void check(const FusedLinear& f) {
  require(f.rows >= 0 && f.in >= 0 && f.out >= 0, "fused_linear: sizes must be >= 0");
  require(f.offset >= 0, "fused_linear: offset must be >= 0");
  require(f.threshold >= 0, "fused_linear: threshold must be >= 0, infinity for none");
  require(f.x_type != FloatType::f16 && f.forward_type != FloatType::f16,
          "fused_linear: inputs and weights of the product must be float32 or bfloat16");
  require((f.bias_plus == nullptr) == (f.bias_minus == nullptr),
          "fused_linear: give both biases or neither");
}

quant::Operand matrix(const void* data, FloatType type, int64_t rows, int64_t cols) {
  const auto store = type == FloatType::f32 ? quant::Store::f32 : quant::Store::bf16;
  return {store, data, rows, cols, cols, nullptr, nullptr, 256};
}

// y[:, first : first + n] = c + bias, c: rows x n.
void put_columns(const float* c, const float* bias, float* y, const FusedLinear& f, int64_t first,
                 int64_t n) {
  parallel_for(f.rows, std::max<int64_t>(1, 65536 / std::max<int64_t>(n, 1)),
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i) {
                   const float* from = c + i * n;
                   float* to = y + i * f.out + first;
                   if (bias == nullptr)
                     std::copy(from, from + n, to);
                   else
                     for (int64_t j = 0; j < n; ++j) to[j] = from[j] + bias[first + j];
                 }
               });
}

}  // namespace

void fused_linear(const FusedLinear& f, uint64_t seed, uint64_t step, uint32_t slot,
                  random::Dist dist) {
  check(f);
  require(random::is_dist(dist), "fused_linear: dist must be 0, 1, 2 or 3");
  if (f.rows == 0 || f.out == 0) return;
  const int64_t bytes = bytes_of(f.forward_type);
  const int64_t fit = kPanelBytes / 2 / std::max<int64_t>(bytes * f.in, 1);
  const int64_t panel = std::min(f.out, std::max<int64_t>(16, fit / 16 * 16));
  std::vector<float> weights(static_cast<size_t>((2 * panel * f.in * bytes + 3) / 4));
  auto* plus = reinterpret_cast<char*>(weights.data());
  char* minus = plus + panel * f.in * bytes;
  std::vector<float> product(static_cast<size_t>(f.rows * panel));
  for (int64_t first = 0; first < f.out; first += panel) {
    const int64_t n = std::min(panel, f.out - first);
    Perturbation t;
    t.out = plus, t.minus = minus;
    t.w = static_cast<const char*>(f.w) + first * f.in * bytes_of(f.w_type);
    t.out_type = f.forward_type, t.w_type = f.w_type;
    t.n = n * f.in, t.offset = f.offset + first * f.in;
    t.scale = f.scale, t.threshold = f.threshold, t.param = f.param;
    perturb({t}, seed, step, slot, dist);
    const auto multiply = [&](const void* x, const char* w, const float* bias, float* y) {
      quant::matmul(product.data(), matrix(x, f.x_type, f.rows, f.in), false,
                    matrix(w, f.forward_type, n, f.in), true);
      put_columns(product.data(), bias, y, f, first, n);
    };
    multiply(f.x_plus, plus, f.bias_plus, f.y_plus);
    multiply(f.x_minus, minus, f.bias_minus, f.y_minus);
  }
}

}  // namespace lowtide::spsa
