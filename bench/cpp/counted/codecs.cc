// SPDX-License-Identifier: Apache-2.0
// Instructions of codecs and of products that read packed weights: 2^16 weights, rows of 2048,
// groups of 256.
#include "counted.h"
#include "lowrank/dct.h"
#include "lowrank/fwht.h"
#include "lowrank/range_finder.h"
#include "quant/gemv.h"
#include "quant/matmul.h"
#include "quant/requant.h"

namespace lowtide::counted {
namespace {

using namespace quant;

constexpr int64_t kN = 1 << 16, kCols = 2048, kRows = kN / kCols;

struct Packed {
  GroupShape s;
  std::shared_ptr<bench::Aligned<uint8_t>> codes, zero;
  std::shared_ptr<bench::Aligned<float>> scale;
  explicit Packed(int bits)
      : s{kRows, kCols, 256, bits},
        codes(buffer<uint8_t>(kRows * row_bytes(s))),
        zero(buffer<uint8_t>(kRows * groups_per_row(s))),
        scale(buffer<float>(kRows * groups_per_row(s))) {
    quantize_groups(values(kN)->data(), FloatType::f32, out(), {.range = Range::headroom});
  }
  GroupMatrix out() const { return {codes->data(), scale->data(), zero->data(), s}; }
  ConstGroupMatrix in() const { return {codes->data(), scale->data(), zero->data(), s}; }
};

std::function<void()> quantize(int bits, Rounding rounding) {
  const Packed w(bits);
  const auto x = values(kN);
  return [=] {
    QuantizeOptions o;
    o.rounding = rounding;
    o.stream = {.seed = 1, .step = 2, .role = random::kRoleWeightSr};
    quantize_groups(x->data(), FloatType::f32, w.out(), o);
  };
}
const Registered kQ8("codec.quantize_int8", [] { return quantize(8, Rounding::nearest); });
const Registered kQ8s("codec.quantize_int8_sr", [] { return quantize(8, Rounding::stochastic); });
const Registered kQ4("codec.quantize_int4", [] { return quantize(4, Rounding::nearest); });
const Registered kQ4s("codec.quantize_int4_sr", [] { return quantize(4, Rounding::stochastic); });

std::function<void()> dequantize(int bits) {
  const Packed w(bits);
  const auto x = buffer<float>(kN);
  return [=] { dequantize_groups(w.in(), x->data(), FloatType::f32); };
}
const Registered kD8("codec.dequantize_int8", [] { return dequantize(8); });
const Registered kD4("codec.dequantize_int4", [] { return dequantize(4); });

std::function<void()> requantize(int bits) {
  const Packed w(bits);
  const auto delta = values(kN, 1e-4f);
  for (uint64_t t = 0; t < 8; ++t)  // until the scales have settled
    requant_add_sr(w.out(), delta->data(), {.alpha = 0.5, .stream = {.seed = 1, .step = t}});
  return [=] {
    requant_add_sr(w.out(), delta->data(), {.alpha = 0.5, .stream = {.seed = 1, .step = 9}});
  };
}
const Registered kR8("codec.requantize_int8_sr", [] { return requantize(8); });
const Registered kR4("codec.requantize_int4_sr", [] { return requantize(4); });

std::function<void()> vector_product(int bits) {
  const Packed w(bits);
  const auto x = values(kCols), y = buffer<float>(kRows);
  return [=] { gemv(y->data(), w.in(), Coding::integer, x->data()); };
}
const Registered kV8("product.gemv_int8", [] { return vector_product(8); });
const Registered kV4("product.gemv_int4", [] { return vector_product(4); });

// 64 x 256 times 256 x 256.
const Registered kMm("product.matmul_f32", [] {
  const auto a = values(64 * 256), b = values(kN), c = buffer<float>(64 * 256);
  return [=] {
    matmul(c->data(), dense(a->data(), 64, 256), false, dense(b->data(), 256, 256), false);
  };
});
const Registered kMm4("product.matmul_int4", [] {
  const Packed w(4);
  const auto a = values(64 * kCols), c = buffer<float>(64 * kRows);
  return [=] {
    const Operand b{Store::int4,    w.codes->data(), kRows,          kCols,
                    row_bytes(w.s), w.scale->data(), w.zero->data(), 256};
    matmul(c->data(), dense(a->data(), 64, kCols), false, b, true);
  };
});

const Registered kRange("refresh.randomized_svd_range", [] {
  const auto g = values(256 * 256), q = buffer<float>(256 * 16);
  return [=] {
    lowrank::RangeFinder how;
    how.rank = 16;
    lowrank::find_range(q->data(), dense(g->data(), 256, 256), lowrank::Side::right, how,
                        {.seed = 1});
  };
});
const Registered kDct("transform.dct_rows", [] {
  const auto x = values(64 * 768), y = buffer<float>(64 * 768);
  return [=] {
    const lowrank::DctMatrix m{x->data(), FloatType::f32, 64, 768, lowrank::Lines::rows};
    lowrank::dct_forward(y->data(), m, nullptr, 768);
  };
});
const Registered kFwht("transform.fwht_rows", [] {
  const auto x = values(64 * 1024), y = buffer<float>(64 * 1024);
  const auto signs = buffer<float>(1024, 1.0f);
  return [=] {
    const lowrank::DctMatrix m{x->data(), FloatType::f32, 64, 1024, lowrank::Lines::rows};
    lowrank::fwht_forward(y->data(), m, signs->data(), nullptr, 1024);
  };
});

}  // namespace
}  // namespace lowtide::counted
