// SPDX-License-Identifier: Apache-2.0
#include "quant/matmul.h"

#include <cmath>
#include <memory>

#include "device.h"
#include "quant/matmul_cuda.h"

namespace lowtide::quant {
namespace {

using ::lowtide::testing::DeviceArray;
using ::lowtide::testing::SameBits;
using ::lowtide::testing::sizes;

struct Kind {
  Store store;
  bool symmetric;
};
const Kind kKinds[] = {{Store::f32, false}, {Store::bf16, false}, {Store::int8, false},
                       {Store::int8, true}, {Store::int4, false}, {Store::int4, true},
                       {Store::nf4, true}};

uint32_t hash(uint64_t i) {
  i = (i ^ (i >> 31)) * 0x9E3779B97F4A7C15ull;
  i = (i ^ (i >> 29)) * 0xBF58476D1CE4E5B9ull;
  return static_cast<uint32_t>(i >> 32);
}
float real(uint64_t i) { return static_cast<float>(static_cast<int32_t>(hash(i))) * 0x1p-31f; }

// A matrix on the host and on the device; buffers end where the matrix does.
struct Both {
  std::vector<uint8_t> bytes, zero;
  std::vector<float> scale;
  std::unique_ptr<DeviceArray<uint8_t>> d_bytes, d_zero;
  std::unique_ptr<DeviceArray<float>> d_scale;
  Operand host, device;

  // `skew` elements before the data on the device, `slack` unused ones behind each row.
  Both(const Kind& kind, int64_t rows, int64_t cols, uint64_t seed, int64_t group, int64_t skew,
       int64_t slack) {
    host.store = kind.store, host.rows = rows, host.cols = cols, host.group = group;
    int64_t element = 1;
    if (kind.store == Store::f32 || kind.store == Store::bf16) {
      element = kind.store == Store::f32 ? 4 : 2;
      host.stride = cols + slack;
      bytes.resize(
          static_cast<size_t>(rows == 0 ? 0 : ((rows - 1) * host.stride + cols) * element));
      for (size_t i = 0; i < bytes.size() / static_cast<size_t>(element); ++i) {
        const float v = real(seed * 1000003 + i);
        const uint16_t h = float_to_bf16(v);
        if (element == 4)
          std::memcpy(bytes.data() + 4 * i, &v, 4);
        else
          std::memcpy(bytes.data() + 2 * i, &h, 2);
      }
    } else {
      const GroupShape shape{rows, cols, group, store_bits(kind.store)};
      host.stride = row_bytes(shape);
      bytes.resize(static_cast<size_t>(rows * host.stride));
      for (size_t i = 0; i < bytes.size(); ++i)
        bytes[i] = static_cast<uint8_t>(hash(seed * 999983 + i));
      for (int64_t i = 0; i < rows * groups_per_row(shape); ++i) {
        scale.push_back(0.01f + std::fabs(real(seed + 77 + static_cast<uint64_t>(i))));
        zero.push_back(static_cast<uint8_t>(hash(seed + 99 + static_cast<uint64_t>(i)) &
                                            static_cast<uint32_t>(max_code(shape.bits))));
      }
      host.scale = scale.data(), host.zero = kind.symmetric ? nullptr : zero.data();
    }
    host.data = bytes.data();
    device = host;
    d_bytes = std::make_unique<DeviceArray<uint8_t>>(bytes, static_cast<size_t>(skew * element));
    d_scale = std::make_unique<DeviceArray<float>>(scale);
    d_zero = std::make_unique<DeviceArray<uint8_t>>(zero);
    device.data = d_bytes->data();
    if (host.scale != nullptr) device.scale = d_scale->data();
    if (host.zero != nullptr) device.zero = d_zero->data();
  }
};

class MatmulCuda : public ::lowtide::testing::ScalarReference {
 protected:
  static void Check(int64_t m, int64_t n, int64_t k, const Kind& ka, bool ta, const Kind& kb,
                    bool tb, int64_t skew = 0, int64_t slack = 0) {
    const Both a(ka, ta ? k : m, ta ? m : k, 1, 64, skew, slack),
        b(kb, tb ? n : k, tb ? k : n, 2, 96, skew, slack);
    std::vector<float> want(static_cast<size_t>(m * n));
    matmul(want.data(), a.host, ta, b.host, tb);
    DeviceArray<float> c(static_cast<size_t>(m * n), static_cast<size_t>(skew));
    ASSERT_EQ(cuda::matmul(c.data(), a.device, ta, b.device, tb, nullptr), 0);
    EXPECT_TRUE(SameBits(c.host(), want))
        << m << "x" << n << "x" << k << " stores " << static_cast<int>(ka.store) << ' '
        << static_cast<int>(kb.store) << " ta " << ta << " tb " << tb << " skew " << skew;
  }
};

TEST_F(MatmulCuda, EveryPairOfStoragesAndTransposes) {
  for (const Kind& ka : kKinds)
    for (const Kind& kb : kKinds)
      for (int t = 0; t < 4; ++t) {
        Check(19, 37, 45, ka, t & 1, kb, t & 2);
        Check(5, 37, 45, ka, t & 1, kb, t & 2);
      }
}

// Sizes of whole vectors: rows on 16 bytes, tiles full and cut, group borders inside the depth.
TEST_F(MatmulCuda, AlignedSizes) {
  for (const Kind& ka : kKinds)
    for (const Kind& kb : kKinds)
      for (int t = 0; t < 4; ++t)
        for (int64_t m : sizes({8, 64}, {})) Check(m, 96, 96, ka, t & 1, kb, t & 2);
}

TEST_F(MatmulCuda, AwkwardSizesAndAlignments) {
  const Kind f{Store::f32, false}, h{Store::bf16, false}, q{Store::int4, false},
      q8{Store::int8, true};
  for (int64_t m : {1, 7, 9, 63, 65})
    for (int64_t n : {1, 3, 64, 66})
      for (int64_t k : {1, 31, 33, 64}) {
        Check(m, n, k, f, k == 33, q, m % 2 == 0, 1);
        Check(m, n, k, q8, m % 2 == 0, h, k == 31, 3, 5);
      }
}

TEST_F(MatmulCuda, ManyTiles) {
  for (int64_t k : sizes({40}, {300})) {
    Check(200, 150, k, {Store::f32, false}, false, {Store::int4, false}, true);
    Check(150, 200, k, {Store::int8, false}, true, {Store::f32, false}, false);
    Check(3, 1030, k, {Store::f32, false}, false, {Store::int8, false}, true);
  }
}

// A chain may hold -0 (an underflow to zero from below); padding must not touch it.
TEST_F(MatmulCuda, NegativeZeroSurvivesTheLastSlice) {
  const std::vector<float> a = {-0x1p-100f}, b = {0x1p-100f};
  DeviceArray<float> da(a), db(b), c(1);
  ASSERT_EQ(cuda::matmul(c.data(), {Store::f32, da.data(), 1, 1, 1}, false,
                         {Store::f32, db.data(), 1, 1, 1}, false, nullptr),
            0);
  EXPECT_TRUE(SameBits(c.host(), {-0.0f}));
}

TEST_F(MatmulCuda, EmptySidesAndEmptyDepth) {
  DeviceArray<float> c(std::vector<float>(12, 7.0f));
  const Operand a{Store::f32, nullptr, 3, 0, 0}, b{Store::f32, nullptr, 0, 4, 4};
  ASSERT_EQ(cuda::matmul(c.data(), a, false, b, false, nullptr), 0);
  EXPECT_TRUE(SameBits(c.host(), std::vector<float>(12, 0.0f)));
  EXPECT_EQ(cuda::matmul(nullptr, {Store::f32, nullptr, 0, 5, 5}, false,
                         {Store::f32, nullptr, 5, 6, 6}, false, nullptr),
            0);
}

TEST_F(MatmulCuda, BadOperandsAreRefused) {
  DeviceArray<float> x(64);
  const Operand a{Store::f32, x.data(), 4, 8, 8}, b{Store::f32, x.data(), 7, 4, 4};
  EXPECT_EQ(cuda::matmul(x.data(), a, false, b, false, nullptr), cudaErrorInvalidValue);
  Operand q{Store::int4, x.data(), 8, 4, 2, x.data(), nullptr, 32};
  q.stride = 3;
  EXPECT_EQ(cuda::matmul(x.data(), a, false, q, false, nullptr), cudaErrorInvalidValue);
  q.stride = 4, q.group = 33;
  EXPECT_EQ(cuda::matmul(x.data(), a, false, q, false, nullptr), cudaErrorInvalidValue);
  q.group = 32, q.scale = nullptr;
  EXPECT_EQ(cuda::matmul(x.data(), a, false, q, false, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace lowtide::quant
