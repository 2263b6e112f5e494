// SPDX-License-Identifier: Apache-2.0
#include "lowrank/dct.h"

#include "base/hd.h"
#include "device.h"
#include "lowrank/dct_cuda.h"
#include "testing.h"

namespace lowtide::lowrank {
namespace {

using ::lowtide::testing::DeviceArray;
using ::lowtide::testing::noise;
using ::lowtide::testing::SameBits;
using ::lowtide::testing::sizes;
using quant::FloatType;

class DctCuda : public ::lowtide::testing::ScalarReference {
 protected:
  static void Check(int64_t rows, int64_t cols, Lines lines) {
    SCOPED_TRACE(::testing::Message() << rows << " x " << cols);
    const int64_t n = lines == Lines::rows ? cols : rows, count_lines = rows * cols / n;
    const std::vector<float> x = noise(rows * cols, 5);
    std::vector<float> table(static_cast<size_t>(dct_table_size(n)));
    make_dct_table(table.data(), n);
    std::vector<int32_t> index;
    for (int64_t k = 0; k < n; k += 3) index.push_back(static_cast<int32_t>(k));
    const auto count = static_cast<int64_t>(index.size());
    DeviceArray<float> dx(x), dtable(table);
    DeviceArray<int32_t> dindex(index);

    std::vector<float> low(static_cast<size_t>(count_lines * count));
    const DctMatrix host = {x.data(), FloatType::f32, rows, cols, lines};
    dct_forward(low.data(), host, index.data(), count);
    DeviceArray<float> dlow(low.size());
    const DctMatrix device = {dx.data(), FloatType::f32, rows, cols, lines};
    ASSERT_EQ(cuda::dct_forward(dlow.data(), device, dindex.data(), count, dtable.data(), nullptr),
              0);
    EXPECT_TRUE(SameBits(dlow.host(), low));

    std::vector<float> back(x.size());
    dct_inverse(back.data(), rows, cols, lines, low.data(), index.data(), count);
    DeviceArray<float> dback(x.size());
    ASSERT_EQ(cuda::dct_inverse(dback.data(), rows, cols, lines, dlow.data(), dindex.data(), count,
                                dtable.data(), nullptr),
              0);
    EXPECT_TRUE(SameBits(dback.host(), back));

    std::vector<uint16_t> half(x.size());
    for (size_t i = 0; i < x.size(); ++i) half[i] = float_to_bf16(x[i]);
    DeviceArray<uint16_t> dhalf(half);
    DeviceArray<float> dsums(static_cast<size_t>(n)),
        scratch(static_cast<size_t>(cuda::dct_power_scratch(rows, cols, lines)));
    for (Power power : {Power::magnitude, Power::square}) {
      std::vector<float> sums(static_cast<size_t>(n));
      dct_power(sums.data(), {half.data(), FloatType::bf16, rows, cols, lines}, power);
      ASSERT_EQ(cuda::dct_power(dsums.data(), {dhalf.data(), FloatType::bf16, rows, cols, lines},
                                power, dtable.data(), scratch.data(), nullptr),
                0);
      EXPECT_TRUE(SameBits(dsums.host(), sums));
    }
  }
};

TEST_F(DctCuda, SameBitsForEveryLengthAndCount) {
  for (int64_t n : sizes({1, 2, 7, 30, 48}, {45, 49, 64, 210, 576}))
    for (int64_t lines : sizes({1, 9, 17}, {140})) {
      Check(lines, n, Lines::rows);
      Check(n, lines, Lines::columns);
    }
}

// Lines that leave room for fewer than eight in a block, and the longest ones.
TEST_F(DctCuda, LongLines) {
  Check(3, 2500, Lines::rows);
  for (int64_t n : sizes({}, {cuda::kDctMostCuda})) Check(2, n, Lines::rows);
}

TEST_F(DctCuda, NoLinesAndBadSizes) {
  DeviceArray<float> one(8);
  const DctMatrix none = {nullptr, FloatType::f32, 0, 4, Lines::rows};
  EXPECT_EQ(cuda::dct_forward(nullptr, none, nullptr, 4, nullptr, nullptr), 0);
  EXPECT_EQ(cuda::dct_power(one.data(), none, Power::square, nullptr, nullptr, nullptr), 0);
  EXPECT_EQ(one.host()[3], 0.0f);
  DctMatrix bad = none;
  bad.cols = cuda::kDctMostCuda + 1;
  EXPECT_EQ(cuda::dct_forward(nullptr, bad, nullptr, bad.cols, nullptr, nullptr),
            cudaErrorInvalidValue);
  EXPECT_EQ(cuda::dct_forward(nullptr, none, nullptr, 3, nullptr, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::dct_inverse(nullptr, -1, 4, Lines::rows, nullptr, nullptr, 4, nullptr, nullptr),
            cudaErrorInvalidValue);
}

}  // namespace
}  // namespace lowtide::lowrank
