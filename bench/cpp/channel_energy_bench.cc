// SPDX-License-Identifier: Apache-2.0
// 4 bytes an element are read. `roofline`: bytes a second against axpy, which reads and writes.
// Outputs are verified after timing. Matrices of 768 x n / 768.
#include "optim/channel_energy.h"

#include <cmath>

#include "roofline.h"

namespace lowtide {
namespace {

template <optim::Channels channels>
void energy(benchmark::State& state) {
  const int64_t rows = 768, cols = state.range(0) / rows, n = rows * cols;
  const auto x = bench::scattered(n);
  const optim::EnergyMatrix m{x.data(), Dtype::f32, rows, cols};
  std::vector<double> got(static_cast<size_t>(channels == optim::Channels::rows ? rows : cols));
  for (auto _ : state) {
    optim::channel_energy(got.data(), m, channels);
    benchmark::ClobberMemory();
  }
  double sum = 0, want = 0;
  for (double e : got) sum += e;
  for (float v : x) want += static_cast<double>(v) * v;
  if (!(std::fabs(sum - want) < 1e-9 * want)) state.SkipWithError("wrong sum");
  bench::report(state, 4.0 * static_cast<double>(n), bench::axpy_bytes_per_second(n / 3), n);
}

const int kRegistered = [] {
  const std::vector<int64_t> sizes = {1 << 18, 768 * 2048, 1 << 25};
  bench::register_per_isa("channel_energy_rows", energy<optim::Channels::rows>, sizes);
  bench::register_per_isa("channel_energy_columns", energy<optim::Channels::columns>, sizes);
  return 0;
}();

}  // namespace
}  // namespace lowtide
