// SPDX-License-Identifier: Apache-2.0
#include "spsa/fused_linear.h"

#include <cmath>
#include <vector>

#include "base/error.h"
#include "quant/matmul.h"
#include "spsa/perturb_scalar.h"
#include "testing.h"

namespace lowtide::spsa {
namespace {

using namespace ::lowtide::testing;
using random::Dist;

std::vector<uint8_t> stored(const std::vector<float>& x, FloatType type) {
  std::vector<uint8_t> bytes(x.size() * static_cast<size_t>(bytes_of(type)));
  for (size_t i = 0; i < x.size(); ++i)
    put_element(bytes.data(), type, static_cast<int64_t>(i), x[i]);
  return bytes;
}

quant::Operand matrix(const void* p, FloatType type, int64_t rows, int64_t cols) {
  const auto store = type == FloatType::f32 ? quant::Store::f32 : quant::Store::bf16;
  return {store, p, rows, cols, cols, nullptr, nullptr, 256};
}

struct Case {
  int64_t rows, in, out;
  FloatType x, w, forward;
};

TEST(FusedLinear, EqualsPerturbThenTheProduct) {
  const auto f32 = FloatType::f32, bf16 = FloatType::bf16, f16 = FloatType::f16;
  const Case cases[] = {{1, 70, 33, f32, f32, f32},      {3, 17, 5, f32, f32, f32},
                        {40, 129, 70, f32, bf16, f32},   {1, 64, 48, bf16, f32, bf16},
                        {18, 100, 31, bf16, bf16, bf16}, {5, 1, 1, f32, f16, bf16},
                        {2, 9000, 35, f32, f32, f32},  // several panels
                        {0, 8, 8, f32, f32, f32},        {2, 0, 3, f32, f32, f32}};
  for (const auto& c : cases)
    for (Dist dist : {Dist::rademacher, Dist::gaussian})
      for (bool with_bias : {false, true}) {
        if (c.in > 1000 && (dist == Dist::gaussian || !with_bias)) continue;  // costs a second each
        const auto xp = stored(noise(c.rows * c.in, 1), c.x),
                   xm = stored(noise(c.rows * c.in, 2), c.x);
        const auto w = stored(noise(c.out * c.in, 3), c.w);
        const auto bp = noise(c.out, 4), bm = noise(c.out, 5);
        same_everywhere([&] {
          const size_t wn = static_cast<size_t>(c.out * c.in * bytes_of(c.forward));
          const size_t yn = static_cast<size_t>(c.rows * c.out);
          std::vector<uint8_t> plus(wn), minus(wn);
          std::vector<float> want_plus(yn), want_minus(yn), yp(yn, NAN), ym(yn, NAN);
          perturb({{plus.data(), w.data(), c.forward, c.w, c.out * c.in, 12, 0.01f, 0.9f, 6,
                    minus.data()}},
                  1, 2, 3, dist);
          quant::matmul(want_plus.data(), matrix(xp.data(), c.x, c.rows, c.in), false,
                        matrix(plus.data(), c.forward, c.out, c.in), true);
          quant::matmul(want_minus.data(), matrix(xm.data(), c.x, c.rows, c.in), false,
                        matrix(minus.data(), c.forward, c.out, c.in), true);
          for (size_t i = 0; with_bias && i < yn; ++i) {
            want_plus[i] += bp[i % static_cast<size_t>(c.out)];
            want_minus[i] += bm[i % static_cast<size_t>(c.out)];
          }
          FusedLinear f;
          f.x_plus = xp.data(), f.x_minus = xm.data(), f.w = w.data();
          if (with_bias) f.bias_plus = bp.data(), f.bias_minus = bm.data();
          f.y_plus = yp.data(), f.y_minus = ym.data();
          f.rows = c.rows, f.in = c.in, f.out = c.out;
          f.x_type = c.x, f.w_type = c.w, f.forward_type = c.forward;
          f.offset = 12, f.scale = 0.01f, f.threshold = 0.9f, f.param = 6;
          fused_linear(f, 1, 2, 3, dist);
          EXPECT_EQ(digest(yp), digest(want_plus)) << c.rows << " x " << c.in << " x " << c.out;
          EXPECT_EQ(digest(ym), digest(want_minus)) << c.rows << " x " << c.in << " x " << c.out;
          return digest(yp) ^ digest(ym);
        });
      }
}

TEST(FusedLinear, RefusesBeforeAnythingIsWritten) {
  std::vector<float> x(4, 1.0f), w(4, 1.0f), y(4, 7.0f);
  FusedLinear good;
  good.x_plus = good.x_minus = x.data(), good.w = w.data();
  good.y_plus = y.data(), good.y_minus = y.data() + 2;
  good.rows = 1, good.in = 2, good.out = 2;
  const auto refused = [&](auto change, Dist dist = Dist::gaussian) {
    FusedLinear bad = good;
    change(bad);
    EXPECT_THROW(fused_linear(bad, 1, 2, 3, dist), Error);
    EXPECT_EQ(y, std::vector<float>(4, 7.0f));
  };
  refused([](auto& f) { f.rows = -1; });
  refused([](auto& f) { f.offset = -1; });
  refused([](auto& f) { f.threshold = NAN; });
  refused([](auto& f) { f.forward_type = FloatType::f16; });
  refused([&](auto& f) { f.bias_plus = x.data(); });
  refused([](auto&) {}, static_cast<Dist>(9));
}

}  // namespace
}  // namespace lowtide::spsa
