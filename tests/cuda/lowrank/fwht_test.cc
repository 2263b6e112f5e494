// SPDX-License-Identifier: Apache-2.0
#include "lowrank/fwht.h"

#include "base/hd.h"
#include "device.h"
#include "lowrank/fwht_cuda.h"
#include "testing.h"

namespace lowtide::lowrank {
namespace {

using ::lowtide::testing::DeviceArray;
using ::lowtide::testing::noise;
using ::lowtide::testing::SameBits;
using ::lowtide::testing::sizes;
using quant::FloatType;

class FwhtCuda : public ::lowtide::testing::ScalarReference {
 protected:
  static void Check(int64_t rows, int64_t cols, Lines lines) {
    SCOPED_TRACE(::testing::Message() << rows << " x " << cols);
    const int64_t n = lines == Lines::rows ? cols : rows, count_lines = rows * cols / n;
    std::vector<float> x = noise(rows * cols, 5), signs = noise(fwht_spans(n) * n, 6);
    for (float& v : signs) v = v < 0 ? -1.0f : 1.0f;
    std::vector<float> factors(signs.size());
    make_fwht_factors(factors.data(), n, signs.data());
    std::vector<int32_t> index;
    for (int64_t k = 0; k < n; k += 3) index.push_back(static_cast<int32_t>(k));
    const auto count = static_cast<int64_t>(index.size());
    std::vector<uint16_t> half(x.size());
    for (size_t i = 0; i < x.size(); ++i) half[i] = float_to_bf16(x[i]);
    DeviceArray<float> dx(x), dfactors(factors);
    DeviceArray<int32_t> dindex(index);
    DeviceArray<uint16_t> dhalf(half);

    std::vector<float> whole(x.size());
    fwht_forward(whole.data(), {x.data(), FloatType::f32, rows, cols, lines}, signs.data(), nullptr,
                 n);
    DeviceArray<float> dwhole(x.size());
    ASSERT_EQ(cuda::fwht_forward(dwhole.data(), {dx.data(), FloatType::f32, rows, cols, lines},
                                 dfactors.data(), nullptr, n, nullptr),
              0);
    EXPECT_TRUE(SameBits(dwhole.host(), whole));

    std::vector<float> low(static_cast<size_t>(count_lines * count));
    fwht_forward(low.data(), {half.data(), FloatType::bf16, rows, cols, lines}, signs.data(),
                 index.data(), count);
    DeviceArray<float> dlow(low.size());
    ASSERT_EQ(cuda::fwht_forward(dlow.data(), {dhalf.data(), FloatType::bf16, rows, cols, lines},
                                 dfactors.data(), dindex.data(), count, nullptr),
              0);
    EXPECT_TRUE(SameBits(dlow.host(), low));

    std::vector<float> back(x.size());
    fwht_inverse(back.data(), rows, cols, lines, low.data(), signs.data(), index.data(), count);
    DeviceArray<float> dback(x.size());
    ASSERT_EQ(cuda::fwht_inverse(dback.data(), rows, cols, lines, dlow.data(), dfactors.data(),
                                 dindex.data(), count, nullptr),
              0);
    EXPECT_TRUE(SameBits(dback.host(), back));
  }
};

TEST_F(FwhtCuda, SameBitsForEveryLengthAndCount) {
  for (int64_t n : sizes({1, 2, 7, 32, 48}, {64, 65, 210, 512}))
    for (int64_t lines : sizes({1, 9, 17}, {140})) {
      Check(lines, n, Lines::rows);
      Check(n, lines, Lines::columns);
    }
}

// Lines that leave room for fewer than eight in a block, and the longest ones.
TEST_F(FwhtCuda, LongLines) {
  Check(3, 5000, Lines::rows);
  for (int64_t n : sizes({}, {cuda::kFwhtMostCuda})) Check(2, n, Lines::rows);
}

TEST_F(FwhtCuda, NoLinesAndBadSizes) {
  const DctMatrix none = {nullptr, FloatType::f32, 0, 4, Lines::rows};
  EXPECT_EQ(cuda::fwht_forward(nullptr, none, nullptr, nullptr, 4, nullptr), 0);
  DctMatrix bad = none;
  bad.cols = cuda::kFwhtMostCuda + 1;
  EXPECT_EQ(cuda::fwht_forward(nullptr, bad, nullptr, nullptr, bad.cols, nullptr),
            cudaErrorInvalidValue);
  EXPECT_EQ(cuda::fwht_forward(nullptr, none, nullptr, nullptr, 3, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::fwht_inverse(nullptr, -1, 4, Lines::rows, nullptr, nullptr, nullptr, 4, nullptr),
            cudaErrorInvalidValue);
}

}  // namespace
}  // namespace lowtide::lowrank
