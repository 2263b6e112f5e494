// SPDX-License-Identifier: Apache-2.0
// Bytes a parameter: 28 in float32; 16.06 with 8-bit states; 10.06 with 8-bit states, bfloat16
// weights (stochastic rounding) and gradients. The limit is axpy's, which reads and writes in the
// ratio 2:1 as these kernels nearly do. Outputs are verified after timing.
#include "optim/fused_step.h"

#include "quant/dynamic_map.h"
#include "roofline.h"

namespace lowtide {
namespace {

using namespace optim;

enum class Kind { f32, low_bit, low_bit_bf16 };

struct Problem {
  Kind kind;
  std::vector<float> p, g, m, v, m_absmax, v_absmax;
  std::vector<uint16_t> p16, g16;
  std::vector<uint8_t> m_codes, v_codes;

  Problem(Kind k, int64_t n) : kind(k) {
    const auto size = static_cast<size_t>(n);
    const bool bf16 = k == Kind::low_bit_bf16;
    p.resize(bf16 ? 0 : size, 0.5f);
    g.resize(bf16 ? 0 : size);
    p16.resize(bf16 ? size : 0, 0x3f00);
    g16.resize(bf16 ? size : 0);
    uint32_t s = 1;
    for (size_t i = 0; i < size; ++i) {
      s = s * 1664525u + 1013904223u;
      const float x = static_cast<float>(static_cast<int32_t>(s)) * 0x1p-31f;
      if (bf16)
        g16[i] = float_to_bf16(x);
      else
        g[i] = x;
    }
    if (k == Kind::f32) {
      m.resize(size), v.resize(size);
    } else {
      const auto blocks = static_cast<size_t>(quant::dynamic_blocks(n));
      m_codes.resize(size, 127), v_codes.resize(size);
      m_absmax.resize(blocks), v_absmax.resize(blocks);
    }
  }

  int64_t step(uint64_t t) {
    StepTensor a;
    const bool bf16 = kind == Kind::low_bit_bf16;
    a.n = static_cast<int64_t>(bf16 ? p16.size() : p.size());
    a.weight_store = bf16 ? WeightStore::bf16_stochastic : WeightStore::f32;
    a.p = bf16 ? static_cast<void*>(p16.data()) : p.data();
    a.g_dtype = bf16 ? Dtype::bf16 : Dtype::f32;
    a.g = bf16 ? static_cast<void*>(g16.data()) : g.data();
    if (kind == Kind::f32)
      a.m = m.data(), a.v = v.data();
    else
      a.states = StateKind::dynamic8, a.m_codes = m_codes.data(), a.v_codes = v_codes.data(),
      a.m_absmax = m_absmax.data(), a.v_absmax = v_absmax.data();
    return fused_step({a}, make_adam_rule(1e-3, 31.6, 1e-8, 0.9, 0.999, 0.9999, 1.0), 1, t);
  }

  bool starts_like(const Problem& o, size_t n) const {
    auto same = [n](const auto& x, const auto& y) {
      const size_t count = std::min({n, x.size(), y.size()});
      return std::memcmp(x.data(), y.data(), count * sizeof x[0]) == 0;
    };
    return same(p, o.p) && same(p16, o.p16) && same(m, o.m) && same(v, o.v) &&
           same(m_codes, o.m_codes) && same(v_codes, o.v_codes);
  }
};

template <Kind kind>
void adamw_step(benchmark::State& state) {
  const int64_t n = state.range(0);
  Problem problem(kind, n);
  uint64_t t = 0;
  for (auto _ : state) {
    problem.step(t++);
    benchmark::ClobberMemory();
  }
  const int64_t few = std::min<int64_t>(n, 2560);
  Problem got(kind, few), want(kind, few);
  for (uint64_t i = 0; i < 3; ++i) got.step(i);
  const Isa isa = active_isa();
  set_isa(Isa::scalar);
  for (uint64_t i = 0; i < 3; ++i) want.step(i);
  set_isa(isa);
  if (!got.starts_like(want, static_cast<size_t>(few))) state.SkipWithError("wrong bits");
  const double bytes = kind == Kind::f32 ? 28 : (kind == Kind::low_bit ? 16 : 10) + 4 * 4.0 / 256;
  // The same footprint in memory or cache as the kernel's.
  const auto floats = static_cast<int64_t>(bytes * static_cast<double>(n) / 12);
  bench::report(state, bytes * static_cast<double>(n), bench::axpy_bytes_per_second(floats), n);
}

const int kRegistered = [] {
  const std::vector<int64_t> sizes = {1 << 14, 1 << 20, 1 << 25};
  bench::register_per_isa("adamw_f32", adamw_step<Kind::f32>, sizes);
  bench::register_per_isa("adamw_8bit", adamw_step<Kind::low_bit>, sizes);
  bench::register_per_isa("adamw_8bit_bf16_sr", adamw_step<Kind::low_bit_bf16>, sizes);
  return 0;
}();

}  // namespace
}  // namespace lowtide
