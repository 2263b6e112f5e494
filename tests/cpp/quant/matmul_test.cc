// SPDX-License-Identifier: Apache-2.0
#include "quant/matmul.h"

#include <cmath>
#include <limits>
#include <vector>

#include "base/error.h"
#include "testing.h"

namespace lowtide::quant {
namespace {

using ::lowtide::testing::digest;
using ::lowtide::testing::noise;
using ::lowtide::testing::same_everywhere;

// An operand with its memory. Codes are random, so every code and both planes of INT4 occur. The
// buffers end exactly where the matrix does: the sanitizers see any read beyond.
struct Stored {
  std::vector<float> f32, scale;
  std::vector<uint16_t> bf16;
  std::vector<uint8_t> codes, zero;
  Operand op;

  Stored(Store store, bool symmetric, int64_t rows, int64_t cols, uint64_t seed, int64_t group = 64,
         int64_t slack = 0) {
    op.store = store, op.rows = rows, op.cols = cols, op.group = group;
    const int64_t stride = cols + slack;
    const int64_t n = rows == 0 ? 0 : (rows - 1) * stride + cols;
    const auto x = noise(n, seed);
    if (store == Store::f32) {
      f32 = x, op.data = f32.data(), op.stride = stride;
      return;
    }
    if (store == Store::bf16) {
      for (float v : x) bf16.push_back(float_to_bf16(v));
      op.data = bf16.data(), op.stride = stride;
      return;
    }
    const GroupShape shape{rows, cols, group, store_bits(store)};
    op.stride = row_bytes(shape);
    codes.resize(static_cast<size_t>(rows * op.stride));
    const auto r = noise(rows * cols + 1, seed + 1);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < cols; ++j)
        put_code(codes.data() + i * op.stride, j, shape.bits,
                 static_cast<int>(float_bits(r[static_cast<size_t>(i * cols + j)]) >> 3) &
                     max_code(shape.bits));
    const auto s = noise(rows * groups_per_row(shape), seed + 2);
    for (float v : s) {
      scale.push_back(0.01f + std::fabs(v));
      zero.push_back(static_cast<uint8_t>(float_bits(v) & max_code(shape.bits)));
    }
    op.data = codes.data(), op.scale = scale.data(), op.zero = symmetric ? nullptr : zero.data();
  }
};

struct Kind {
  Store store;
  bool symmetric;
};
const Kind kKinds[] = {{Store::f32, false}, {Store::bf16, false}, {Store::int8, false},
                       {Store::int8, true}, {Store::int4, false}, {Store::int4, true},
                       {Store::nf4, true}};

std::vector<float> product(const Operand& a, bool ta, const Operand& b, bool tb) {
  const int64_t rows = ta ? a.cols : a.rows, cols = tb ? b.rows : b.cols;
  std::vector<float> c(static_cast<size_t>(rows * cols), std::nanf(""));
  matmul(c.data(), a, ta, b, tb);
  return c;
}

void expect_same(int64_t m, int64_t n, int64_t k, const Kind& ka, bool ta, const Kind& kb, bool tb,
                 int64_t slack = 0) {
  const Stored a(ka.store, ka.symmetric, ta ? k : m, ta ? m : k, 1, 64, slack);
  const Stored b(kb.store, kb.symmetric, tb ? n : k, tb ? k : n, 2, 96, slack);
  SCOPED_TRACE(::testing::Message()
               << m << "x" << n << "x" << k << " ta " << ta << " tb " << tb << " stores "
               << static_cast<int>(ka.store) << static_cast<int>(kb.store));
  same_everywhere([&] { return digest(product(a.op, ta, b.op, tb)); });
}

TEST(Matmul, ScalarIsTheChainOverTheDecodedMatrices) {
  const Stored a(Store::int4, false, 5, 70, 3, 32), b(Store::int8, true, 7, 70, 4, 32);
  testing::IsaGuard guard(Isa::scalar);
  const auto c = product(a.op, false, b.op, true);
  for (int64_t i = 0; i < 5; ++i)
    for (int64_t j = 0; j < 7; ++j) {
      float want = 0;
      for (int64_t k = 0; k < 70; ++k) {
        const int64_t ga = i * 3 + k / 32, gb = j * 3 + k / 32;
        const float x = decode(get_code(a.codes.data() + i * a.op.stride, k, 4),
                               a.zero[static_cast<size_t>(ga)], a.scale[static_cast<size_t>(ga)]);
        const float y = decode(get_code(b.codes.data() + j * b.op.stride, k, 8), 128,
                               b.scale[static_cast<size_t>(gb)]);
        want = std::fma(x, y, want);
      }
      EXPECT_EQ(c[static_cast<size_t>(i * 7 + j)], want);
    }
}

TEST(Matmul, EveryPairOfStoragesAndTransposes) {
  for (const Kind& ka : kKinds)
    for (const Kind& kb : kKinds)
      for (int t = 0; t < 4; ++t) expect_same(19, 37, 45, ka, t & 1, kb, t & 2);
}

TEST(Matmul, AwkwardSizes) {
  const int64_t sizes[] = {1, 2, 7, 13, 15, 16, 17, 31, 33, 65};
  const Kind f{Store::f32, false}, q{Store::int4, false};
  for (int64_t m : sizes)
    for (int64_t n : sizes)
      for (int64_t k : {1, 3, 33}) {
        expect_same(m, n, k, f, k == 3, q, m % 2 == 0);
        expect_same(m, n, k, q, m % 2 == 0, f, k == 3, 5);
      }
}

// Beyond one depth, one held block and one passing block on either side.
TEST(Matmul, BlocksAreResumedExactly) {
  const Kind f{Store::f32, false}, q8{Store::int8, false}, q4{Store::int4, true};
  expect_same(130, 61, 300, f, false, q4, true);
  expect_same(61, 150, 300, q4, false, f, false);
  expect_same(150, 33, 530, q8, true, f, true);
  expect_same(3, 540, 20, f, false, q8, true);
  expect_same(540, 541, 2, f, true, q8, false);
}

// Dense operands of which one is a vector take a way of their own.
TEST(Matmul, DenseProductsWithAVector) {
  const Kind kinds[] = {{Store::f32, false}, {Store::bf16, false}};
  for (const Kind& ka : kinds)
    for (const Kind& kb : kinds)
      for (int t = 0; t < 4; ++t)
        for (int64_t n : {1, 2, 15, 17, 63, 65, 200, 2100})
          for (int64_t k : {1, 7, 8, 33, 100}) {
            expect_same(1, n, k, ka, t & 1, kb, t & 2, 3);
            expect_same(n, 1, k, ka, t & 1, kb, t & 2, 3);
          }
}

// A narrow side is held over 32 depths at a time.
TEST(Matmul, NarrowProductsOfGreatDepth) {
  const Kind f{Store::f32, false}, q8{Store::int8, false}, q4{Store::int4, true};
  expect_same(1, 35, 8500, f, false, q4, true);
  expect_same(35, 3, 8500, q8, false, f, true);
  expect_same(16, 33, 600, f, false, f, false);
  expect_same(33, 17, 600, f, true, q8, true);
}

TEST(Matmul, ManyThreadsShareOneProduct) {
  const Stored a(Store::f32, false, 257, 64, 1), b(Store::int8, false, 200, 64, 2);
  same_everywhere([&] { return digest(product(a.op, false, b.op, true)); });
}

TEST(Matmul, EmptySides) {
  const Stored a(Store::f32, false, 3, 0, 1), b(Store::f32, false, 0, 4, 2);
  const auto c = product(a.op, false, b.op, false);
  for (float v : c) EXPECT_EQ(float_bits(v), 0u);
  const Stored none(Store::int4, false, 0, 5, 1), wide(Store::f32, false, 5, 6, 1);
  EXPECT_TRUE(product(none.op, false, wide.op, false).empty());
}

// The rounding error of a chain: k 2^-24 sum |a b|.
TEST(Matmul, CloseToDouble) {
  const int64_t m = 20, n = 30, k = 1000;
  const Stored a(Store::f32, false, m, k, 1), b(Store::f32, false, k, n, 2);
  const auto c = product(a.op, false, b.op, false);
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      double want = 0, magnitude = 0;
      for (int64_t q = 0; q < k; ++q) {
        const double t = static_cast<double>(a.f32[static_cast<size_t>(i * k + q)]) *
                         b.f32[static_cast<size_t>(q * n + j)];
        want += t, magnitude += std::fabs(t);
      }
      EXPECT_NEAR(c[static_cast<size_t>(i * n + j)], want, 1000 * 0x1p-24 * magnitude);
    }
}

TEST(Matmul, NonFiniteValuesReachTheirElementsOnly) {
  Stored a(Store::f32, false, 20, 40, 1);
  const Stored b(Store::f32, false, 40, 50, 2);
  a.f32[5 * 40 + 3] = std::numeric_limits<float>::infinity();
  a.f32[7 * 40 + 1] = std::nanf("");
  for (Isa isa : available_isas()) {
    testing::IsaGuard guard(isa);
    const auto c = product(a.op, false, b.op, false);
    for (int64_t i = 0; i < 20; ++i)
      for (int64_t j = 0; j < 50; ++j)
        EXPECT_EQ(std::isfinite(c[static_cast<size_t>(i * 50 + j)]), i != 5 && i != 7);
  }
}

TEST(Matmul, BadOperandsAreRefusedAndNothingIsWritten) {
  Stored a(Store::f32, false, 4, 5, 1), b(Store::int4, false, 5, 40, 2, 32);
  std::vector<float> c(4 * 40, 7.0f);
  const auto refuse = [&](const Operand& x, const Operand& y) {
    EXPECT_THROW(matmul(c.data(), x, false, y, false), Error);
    for (float v : c) ASSERT_EQ(v, 7.0f);
  };
  Operand bad = b.op;
  bad.rows = 6;
  refuse(a.op, bad);
  bad = b.op, bad.group = 48;
  refuse(a.op, bad);
  bad = b.op, bad.stride = 40;
  refuse(a.op, bad);
  bad = b.op, bad.scale = nullptr;
  refuse(a.op, bad);
  bad = a.op, bad.stride = 4;
  refuse(bad, b.op);
  EXPECT_THROW(matmul(a.f32.data(), a.op, false, b.op, false), Error);
}

// The format is a promise: the same packed bytes give the same product in every later version.
TEST(Matmul, Digest) {
  const Stored a(Store::f32, false, 70, 300, 5), b(Store::int4, false, 45, 300, 6);
  EXPECT_EQ(same_everywhere([&] { return digest(product(a.op, false, b.op, true)); }),
            0xd5dedfb1488218bdull);
}

}  // namespace
}  // namespace lowtide::quant
