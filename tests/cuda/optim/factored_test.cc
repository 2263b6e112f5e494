// SPDX-License-Identifier: Apache-2.0
#include "optim/factored.h"

#include <limits>

#include "base/hd.h"
#include "device.h"
#include "optim/factored_cuda.h"
#include "testing.h"

namespace lowtide::optim {
namespace {

using ::lowtide::testing::DeviceArray;
using ::lowtide::testing::noise;
using ::lowtide::testing::SameBits;
using ::lowtide::testing::ScalarReference;

struct Shape {
  int64_t rows, cols;
};
const std::vector<Shape> kShapes = {{0, 5},  {5, 0},   {1, 1},   {1, 15},   {3, 16},
                                    {7, 17}, {33, 31}, {100, 1}, {129, 65}, {20, 516}};
const FactoredRule kPaper = {0.8, 1e-30, 0.0, 0.0, 1.0};
const FactoredRule kTorch = {0.8, 0.0, 1.4e-14, 1.2e-7, 0.3};

std::vector<uint16_t> halved(const std::vector<float>& x) {
  std::vector<uint16_t> out;
  for (float v : x) out.push_back(float_to_bf16(v));
  return out;
}

class FactoredCuda : public ScalarReference {
 protected:
  // Two steps on both sides.
  static void Adafactor(const Shape& s, const FactoredRule& rule, const std::vector<float>& g,
                        bool columns, bool bf16, size_t skew) {
    SCOPED_TRACE(::testing::Message() << s.rows << "x" << s.cols << " columns " << columns
                                      << " bf16 " << bf16 << " skew " << skew);
    const auto rows = static_cast<size_t>(s.rows), cols = static_cast<size_t>(s.cols);
    const std::vector<uint16_t> half = halved(g);
    std::vector<float> u(g.size(), 7.0f), row(rows, 1e-3f), col(cols, 2e-3f);
    const DeviceArray<float> dg(g, skew), du(u, skew), drow(row), dcol(col);
    const DeviceArray<uint16_t> dhalf(half, skew);
    const DeviceArray<char> scratch(static_cast<size_t>(cuda::factored_scratch(s.rows, s.cols)));
    const DeviceArray<int64_t> skipped(std::vector<int64_t>{-1});
    const Dtype type = bf16 ? Dtype::bf16 : Dtype::f32;
    const RowMatrix host = {bf16 ? static_cast<const void*>(half.data()) : g.data(), type, s.rows,
                            s.cols};
    const RowMatrix device = {bf16 ? static_cast<const void*>(dhalf.data()) : dg.data(), type,
                              s.rows, s.cols};
    for (int step = 0; step < 2; ++step) {
      const bool done = adafactor(u.data(), row.data(), columns ? col.data() : nullptr, host, rule);
      ASSERT_EQ(cuda::adafactor(du.data(), drow.data(), columns ? dcol.data() : nullptr, device,
                                rule, scratch.data(), skipped.data(), nullptr),
                0);
      EXPECT_EQ(skipped.host()[0], done ? 0 : 1);
      EXPECT_TRUE(SameBits(du.host(), u)) << "u";
      EXPECT_TRUE(SameBits(drow.host(), row)) << "row";
      EXPECT_TRUE(SameBits(dcol.host(), col)) << "col";
    }
  }
};

TEST_F(FactoredCuda, SameBitsForEveryShape) {
  for (const Shape& s : kShapes)
    for (bool columns : {true, false})
      for (bool bf16 : {false, true})
        for (size_t skew : {0, 1})
          for (const FactoredRule& rule : {kPaper, kTorch})
            Adafactor(s, rule, noise(s.rows * s.cols, 3), columns, bf16, skew);
}

TEST_F(FactoredCuda, WhatIsNotFiniteIsSkipped) {
  for (float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 3e38f})
    for (bool columns : {true, false}) {
      std::vector<float> g = noise(20 * 33, 1);
      g[100] = bad;
      Adafactor({20, 33}, kPaper, g, columns, false, 0);
    }
}

TEST_F(FactoredCuda, BlocksAndRowsHaveTheSameBits) {
  for (const Shape& s : kShapes)
    for (float bad : {0.0f, std::numeric_limits<float>::infinity()}) {
      std::vector<float> g = noise(s.rows * s.cols, 4);
      if (bad != 0.0f && !g.empty()) g[0] = bad;
      const std::vector<uint16_t> w = halved(noise(s.rows * s.cols, 5));
      const auto rows = static_cast<size_t>(s.rows);
      std::vector<float> v(rows, 1e-3f), factor(rows), u = noise(s.rows * s.cols, 6);
      const DeviceArray<float> dg(g), dv(v), dfactor(factor), du(u);
      const DeviceArray<uint16_t> dw(w);
      const DeviceArray<char> scratch(static_cast<size_t>(cuda::factored_scratch(s.rows, s.cols)));
      const DeviceArray<int64_t> skipped(std::vector<int64_t>{-1});
      const BlockRule rule = {0.99, 1e-2, 3.0, 1e-8};
      const bool done =
          block_adam(factor.data(), v.data(), {g.data(), Dtype::f32, s.rows, s.cols}, rule);
      ASSERT_EQ(cuda::block_adam(dfactor.data(), dv.data(), {dg.data(), Dtype::f32, s.rows, s.cols},
                                 rule, scratch.data(), skipped.data(), nullptr),
                0);
      EXPECT_EQ(skipped.host()[0], done ? 0 : 1);
      EXPECT_TRUE(SameBits(dv.host(), v));
      EXPECT_TRUE(SameBits(dfactor.host(), factor));
      if (bad != 0.0f) continue;
      std::vector<double> dots(rows);
      const DeviceArray<double> ddots(dots);
      row_dots(dots.data(), {g.data(), Dtype::f32, s.rows, s.cols},
               {w.data(), Dtype::bf16, s.rows, s.cols});
      ASSERT_EQ(cuda::row_dots(ddots.data(), {dg.data(), Dtype::f32, s.rows, s.cols},
                               {dw.data(), Dtype::bf16, s.rows, s.cols}, nullptr),
                0);
      EXPECT_TRUE(SameBits(ddots.host(), dots));
      shear_rows(u.data(), v.data(), {w.data(), Dtype::bf16, s.rows, s.cols});
      scale_rows(u.data(), factor.data(), s.rows, s.cols);
      ASSERT_EQ(
          cuda::shear_rows(du.data(), dv.data(), {dw.data(), Dtype::bf16, s.rows, s.cols}, nullptr),
          0);
      ASSERT_EQ(cuda::scale_rows(du.data(), dfactor.data(), s.rows, s.cols, nullptr), 0);
      EXPECT_TRUE(SameBits(du.host(), u));
    }
}

TEST_F(FactoredCuda, BadSizesAreRefused) {
  const RowMatrix bad = {nullptr, Dtype::f32, -1, 2};
  EXPECT_EQ(cuda::adafactor(nullptr, nullptr, nullptr, bad, kPaper, nullptr, nullptr, nullptr),
            cudaErrorInvalidValue);
  EXPECT_EQ(cuda::row_dots(nullptr, bad, bad, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::shear_rows(nullptr, nullptr, bad, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace lowtide::optim
