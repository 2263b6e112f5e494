// SPDX-License-Identifier: Apache-2.0
// Adafactor's direction of a matrix: 4 bytes an element for the sums and 8 for the scaled gradient
// (16 where it is clipped: not here). Outputs are verified after timing.
#include "optim/factored.h"

#include "roofline.h"

namespace lowtide {
namespace {

using namespace optim;

constexpr int64_t kCols = 1024;

struct Problem {
  std::vector<float> g, u, row, col;
  explicit Problem(int64_t n)
      : g(static_cast<size_t>(n)),
        u(g.size()),
        row(static_cast<size_t>(n / kCols)),
        col(static_cast<size_t>(kCols)) {
    uint32_t s = 1;
    for (float& x : g) {
      s = s * 1664525u + 1013904223u;
      x = static_cast<float>(static_cast<int32_t>(s)) * 0x1p-31f;
    }
  }
  bool step() {
    const RowMatrix view = {g.data(), Dtype::f32, static_cast<int64_t>(row.size()), kCols};
    return adafactor(u.data(), row.data(), col.data(), view, {0.5, 1e-30, 0, 0, 1e3});
  }
};

void direction(benchmark::State& state) {
  Problem problem(state.range(0));
  for (auto _ : state) {
    problem.step();
    benchmark::ClobberMemory();
  }
  Problem got(8 * kCols), want(8 * kCols);
  got.step();
  const Isa isa = active_isa();
  set_isa(Isa::scalar);
  want.step();
  set_isa(isa);
  if (got.u != want.u || got.row != want.row || got.col != want.col)
    state.SkipWithError("wrong bits");
  const double moved = 12.0 * static_cast<double>(state.range(0));
  bench::report(state, moved, bench::axpy_bytes_per_second(state.range(0)), state.range(0));
}

const int kRegistered = [] {
  const std::vector<int64_t> sizes = {1 << 16, 1 << 20, 1 << 25};
  bench::register_per_isa("adafactor_f32", direction, sizes);
  return 0;
}();

}  // namespace
}  // namespace lowtide
