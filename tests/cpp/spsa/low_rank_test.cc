// SPDX-License-Identifier: Apache-2.0
#include "spsa/low_rank.h"

#include <cmath>
#include <tuple>
#include <vector>

#include "base/error.h"
#include "random/stream.h"
#include "spsa/schedules.h"
#include "testing.h"

namespace lowtide::spsa {
namespace {

using namespace ::lowtide::testing;

constexpr FloatType kTypes[] = {FloatType::f32, FloatType::bf16, FloatType::f16};

size_t width(FloatType type) { return type == FloatType::f32 ? 4 : 2; }

std::vector<uint8_t> masters(FloatType type, int64_t n) {
  std::vector<uint8_t> bytes(static_cast<size_t>(n) * width(type));
  const auto x = noise(n, 1);
  for (int64_t i = 0; i < n; ++i) store_master(bytes.data(), type, i, x[static_cast<size_t>(i)]);
  return bytes;
}

LowRankMatrix matrix(int64_t rows, int64_t cols, int64_t rank, int64_t first_row = 0) {
  return {rows, cols, first_row, rank, 4};
}

std::vector<int64_t> old_v(const Plan& run) {
  std::vector<int64_t> v;
  for (int64_t s : run.dir_steps) v.push_back(s / 4 * 4);
  return v;
}

// z of the definition, from sampled factors.
std::vector<float> direction(const LowRankMatrix& m, const LowRankPoint& at) {
  std::vector<float> u(static_cast<size_t>(m.rows * m.rank)),
      v(static_cast<size_t>(m.cols * m.rank));
  random::sample(u.data(), m.rows * m.rank, 0, {at.seed, at.step, at.slot, 4, random::kRoleU},
                 random::Dist::gaussian);
  random::sample(v.data(), m.cols * m.rank, 0, {at.seed, at.v_step, at.slot, 4, random::kRoleV},
                 random::Dist::gaussian);
  std::vector<float> z;
  for (int64_t i = 0; i < m.rows; ++i)
    for (int64_t j = 0; j < m.cols; ++j) {
      float x = 0.0f;
      for (int64_t k = 0; k < m.rank; ++k)
        x = fma_rn(u[static_cast<size_t>(i * m.rank + k)], v[static_cast<size_t>(j * m.rank + k)],
                   x);
      z.push_back(x * static_cast<float>(1.0 / std::sqrt(static_cast<double>(m.rank))));
    }
  return z;
}

const std::tuple<int64_t, int64_t> kShapes[] = {{0, 3},   {3, 0},   {1, 1},    {2, 15}, {5, 17},
                                                {3, 255}, {2, 257}, {1, 1000}, {40, 33}};

TEST(LowRank, PerturbIsItsDefinitionOnEveryIsaAndThreadCount) {
  for (const auto& [rows, cols] : kShapes)
    for (int64_t rank : {1, 2, 3, 4, 8}) {
      const auto m = matrix(rows, cols, rank);
      const LowRankPoint at = {77, 9, 8, 2};
      const auto z = direction(m, at);
      for (FloatType in : kTypes)
        for (FloatType out : kTypes) {
          const auto w = masters(in, rows * cols);
          std::vector<uint8_t> want(z.size() * width(out)), got(want.size());
          for (size_t i = 0; i < z.size(); ++i)
            store_master(want.data(), out, static_cast<int64_t>(i),
                         load_master(w.data(), in, static_cast<int64_t>(i)) + 1e-3f * z[i]);
          same_everywhere([&] {
            low_rank_perturb(got.data(), out, w.data(), in, 1e-3f, m, at);
            EXPECT_EQ(got, want);
            return digest(got);
          });
        }
    }
}

TEST(LowRank, ReplayIsItsDefinitionOnEveryIsaAndThreadCount) {
  const Plan run = mixed_run();
  const auto v_steps = old_v(run);
  for (const auto& [rows, cols] : kShapes)
    for (FloatType type : kTypes) {
      const auto m = matrix(rows, cols, rows == 5 ? 7 : 2);
      auto want = masters(type, rows * cols);
      for (size_t k = 0; k < run.decays.size(); ++k) {
        if (run.decays[k] == 1.0f && run.first[k] == run.first[k + 1]) continue;
        std::vector<float> acc(static_cast<size_t>(rows * cols), 0.0f);
        for (auto j = static_cast<size_t>(run.first[k]); j < static_cast<size_t>(run.first[k + 1]);
             ++j) {
          const auto z = direction(
              m, {77, static_cast<uint64_t>(run.dir_steps[j]), static_cast<uint64_t>(v_steps[j]),
                  static_cast<uint32_t>(run.dir_slots[j])});
          for (size_t i = 0; i < z.size(); ++i) acc[i] = fma_rn(run.coeffs[j] * 0.7f, z[i], acc[i]);
        }
        const random::Key key =
            random::derive_key(77, static_cast<uint64_t>(run.round_steps[k]), 0);
        for (size_t i = 0; i < acc.size(); ++i) {
          const auto at = static_cast<int64_t>(i);
          const float x = load_master(want.data(), type, at) * run.decays[k] + acc[i];
          store_master(want.data(), type, at,
                       rounded_master(x, type, random::sr16(i, key, 4, random::kRoleWeightSr)));
        }
      }
      same_everywhere([&] {
        auto w = masters(type, rows * cols);
        low_rank_replay(w.data(), type, 0.7f, m, run.schedule(), v_steps.data());
        EXPECT_EQ(w, want) << rows << " x " << cols;
        return digest(w);
      });
    }
}

TEST(LowRank, ReplayIsStepByStepAndRowsAreTheWhole) {
  const Plan run = mixed_run();
  const auto v_steps = old_v(run);
  for (FloatType type : kTypes) {
    const int64_t rows = 30, cols = 301;
    auto whole = masters(type, rows * cols);
    auto stepwise = whole, cut = whole;
    low_rank_replay(whole.data(), type, 1.0f, matrix(rows, cols, 3), run.schedule(),
                    v_steps.data());
    for (size_t k = 0; k < run.decays.size(); ++k)
      low_rank_replay(stepwise.data(), type, 1.0f, matrix(rows, cols, 3), run.step(k).schedule(),
                      v_steps.data() + run.first[k]);
    EXPECT_EQ(whole, stepwise);
    for (const auto& [a, b] : std::vector<std::pair<int64_t, int64_t>>{{17, 30}, {0, 1}, {1, 17}})
      low_rank_replay(cut.data() + static_cast<size_t>(a * cols) * width(type), type, 1.0f,
                      matrix(b - a, cols, 3, a), run.schedule(), v_steps.data());
    EXPECT_EQ(whole, cut);
  }
}

TEST(LowRank, WhatCannotBeIsRefusedAndNothingIsChanged) {
  auto w = masters(FloatType::f32, 64);
  const auto before = w;
  const Plan run = mixed_run();
  auto v_steps = old_v(run);
  const auto refused = [&](const LowRankMatrix& m, float scale) {
    EXPECT_THROW(low_rank_perturb(w.data(), FloatType::f32, w.data(), FloatType::f32, scale, m, {}),
                 Error);
    EXPECT_THROW(
        low_rank_replay(w.data(), FloatType::f32, scale, m, run.schedule(), v_steps.data()), Error);
    EXPECT_EQ(w, before);
  };
  refused(matrix(8, 8, 0), 1.0f);
  refused(matrix(8, 8, 9), 1.0f);
  refused(matrix(-1, 8, 1), 1.0f);
  refused(matrix(8, 8, 1, -1), 1.0f);
  refused(matrix(8, 8, 1), NAN);
  v_steps[3] = -1;
  EXPECT_THROW(
      low_rank_replay(w.data(), FloatType::f32, 1, matrix(8, 8, 1), run.schedule(), v_steps.data()),
      Error);
  EXPECT_EQ(w, before);
}

}  // namespace
}  // namespace lowtide::spsa
