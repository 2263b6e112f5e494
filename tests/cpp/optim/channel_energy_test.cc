// SPDX-License-Identifier: Apache-2.0
#include "optim/channel_energy.h"

#include <cmath>
#include <limits>
#include <vector>

#include "base/error.h"
#include "optim/weights.h"
#include "testing.h"

namespace lowtide::optim {
namespace {

using namespace ::lowtide::testing;

std::vector<double> energy(const EnergyMatrix& m, Channels channels) {
  std::vector<double> out(static_cast<size_t>(channels == Channels::rows ? m.rows : m.cols), -1.0);
  channel_energy(out.data(), m, channels);
  return out;
}

TEST(ChannelEnergy, SameBitsForEverySizeIsaAndThreadCount) {
  for (int64_t rows : {0, 1, 7, 8, 9, 63, 64, 65, 130, 400})
    for (int64_t cols : {0, 1, 15, 31, 32, 33, 100, 511, 513, 1100}) {
      const auto x = noise(rows * cols, 3);
      const auto h = to_bf16(x);
      for (Channels channels : {Channels::rows, Channels::columns})
        same_everywhere([&] {
          return digest(energy({x.data(), Dtype::f32, rows, cols}, channels)) ^
                 3 * digest(energy({h.data(), Dtype::bf16, rows, cols}, channels));
        });
    }
}

// Double sums of exact squares: the rounding of at most n additions, far below 1e-12.
TEST(ChannelEnergy, IsTheSumOfSquares) {
  const int64_t rows = 300, cols = 700;
  const auto x = noise(rows * cols, 4);
  std::vector<double> by_row(rows), by_column(cols);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j) {
      const double v = x[static_cast<size_t>(i * cols + j)];
      by_row[static_cast<size_t>(i)] += v * v, by_column[static_cast<size_t>(j)] += v * v;
    }
  const EnergyMatrix m{x.data(), Dtype::f32, rows, cols};
  const auto r = energy(m, Channels::rows), c = energy(m, Channels::columns);
  for (size_t i = 0; i < r.size(); ++i) EXPECT_NEAR(r[i], by_row[i], 1e-12 * by_row[i]);
  for (size_t j = 0; j < c.size(); ++j) EXPECT_NEAR(c[j], by_column[j], 1e-12 * by_column[j]);
}

TEST(ChannelEnergy, HugeAndTinyFloatsNeitherOverflowNorVanish) {
  const std::vector<float> x = {3e38f, 3e38f, 1e-44f, 0.0f};
  const EnergyMatrix m{x.data(), Dtype::f32, 2, 2};
  const auto r = energy(m, Channels::rows);
  EXPECT_NEAR(r[0] / (2.0 * x[0] * static_cast<double>(x[0])), 1.0, 1e-15);
  EXPECT_EQ(r[1], static_cast<double>(x[2]) * x[2]);
  EXPECT_GT(r[1], 0.0);
}

TEST(ChannelEnergy, OnlyInfAndNanMakeASumNotFinite) {
  for (float bad : {std::numeric_limits<float>::infinity(), std::nanf("")})
    for (Channels channels : {Channels::rows, Channels::columns})
      for (int64_t at : {0, 99, 3999}) {
        auto x = noise(4000, 5);
        x[static_cast<size_t>(at)] = bad;
        const auto e = energy({x.data(), Dtype::f32, 40, 100}, channels);
        const int64_t channel = channels == Channels::rows ? at / 100 : at % 100;
        for (size_t i = 0; i < e.size(); ++i)
          EXPECT_EQ(std::isfinite(e[i]), static_cast<int64_t>(i) != channel) << i;
      }
}

TEST(ChannelEnergy, NegativeSizesAreRefused) {
  double none = 0;
  EXPECT_THROW(channel_energy(&none, {nullptr, Dtype::f32, -1, 1}, Channels::rows), Error);
}

TEST(OrderedSum, IsTheOrderOfOneRow) {
  for (int64_t n : kAwkward) {
    const auto x = noise(n, 6);
    std::vector<double> squares;
    for (float v : x) squares.push_back(static_cast<double>(v) * v);
    EXPECT_EQ(ordered_sum(squares.data(), n),
              energy({x.data(), Dtype::f32, 1, n}, Channels::rows)[0]);
  }
}

}  // namespace
}  // namespace lowtide::optim
