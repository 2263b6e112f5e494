// SPDX-License-Identifier: Apache-2.0
#include "random/stream.h"

#include <cmath>
#include <vector>

#include "base/error.h"
#include "random/stream_table.h"
#include "testing.h"

namespace lowtide::random {
namespace {

using ::lowtide::testing::digest;
using ::lowtide::testing::kAwkward;
using ::lowtide::testing::noise;
using ::lowtide::testing::same_everywhere;

// DEShawResearch/random123, tests/kat_vectors: philox4x32 7 and 10.
TEST(Philox, Random123KnownAnswers) {
  struct Case {
    int rounds;
    uint32_t ctr[4];
    Key key;
    uint32_t want[4];
  };
  const uint32_t pi[4] = {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344};
  const Key pi_key = {0xa4093822, 0x299f31d0};
  const Case cases[] = {
      {7, {0, 0, 0, 0}, {0, 0}, {0x5f6fb709, 0x0d893f64, 0x4f121f81, 0x4f730a48}},
      {7, {~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}, {0x5207ddc2, 0x45165e59, 0x4d8ee751, 0x8c52f662}},
      {7, {pi[0], pi[1], pi[2], pi[3]}, pi_key, {0x4dfccaba, 0x190a87f0, 0xc47362ba, 0xb6b5242a}},
      {10, {0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
      {10, {~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
      {10, {pi[0], pi[1], pi[2], pi[3]}, pi_key, {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}};
  for (const auto& c : cases)
    for (uint32_t role : {kRoleZ, kRoleWeightSr, kRoleU, kRoleV, kRoleMask, kRoleQuantSr}) {
      const bool rounding = role == kRoleWeightSr || role == kRoleQuantSr;
      if (c.rounds != (rounding ? 7 : 10)) continue;
      uint32_t x[4] = {c.ctr[0], c.ctr[1], c.ctr[2], c.ctr[3]};
      philox4x32(x, c.key, role);
      for (int i = 0; i < 4; ++i) EXPECT_EQ(x[i], c.want[i]) << "role " << role;
    }
}

TEST(Philox, WordStreamFollowsTheTileLayout) {
  for (uint32_t role : {kRoleU, kRoleQuantSr}) {
    const Stream s{.seed = 7, .step = 3, .slot = 1, .param = 9, .role = role};
    const Key key = derive_key(s.seed, s.step, s.slot);
    std::vector<uint32_t> w(256);
    words(w.data(), 256, 0, s);
    for (uint32_t block = 0; block < 64; ++block) {
      uint32_t x[4] = {block, 0, s.param, role};
      Key k = key;
      philox_rounds(x, k, role == kRoleU ? 10 : 7);
      for (int i = 0; i < 4; ++i) EXPECT_EQ(w[(block / 16) * 64 + 16 * i + block % 16], x[i]);
    }
  }
}

// The streams are a file format: runs logged today must replay in every later version.
TEST(Stream, DigestsOfTheFormat) {
  const Stream s{.seed = 0x0123456789abcdefull, .step = 5, .slot = 2, .param = 11, .role = kRoleZ};
  const auto samples = [&](Dist dist) {
    return same_everywhere([&] {
      std::vector<float> z(40007);
      sample(z.data(), 40007, 12345, s, dist);
      return digest(z);
    });
  };
  EXPECT_EQ(same_everywhere([&] {
              std::vector<uint32_t> w(10007);
              words(w.data(), 10007, 12345, s);
              return digest(w);
            }),
            0x278da4aba4ef092aull);
  EXPECT_EQ(samples(Dist::gaussian), 0x445c4474ffb51a4eull);
  EXPECT_EQ(samples(Dist::rademacher), 0x05487deb305bf3a8ull);
  EXPECT_EQ(samples(Dist::ih4), 0xcbfc3363e85cdc7bull);
  EXPECT_EQ(samples(Dist::lut8), 0x64a4d75aa7a13250ull);
  Stream rounding = s;
  rounding.role = kRoleWeightSr;
  EXPECT_EQ(same_everywhere([&] {
              std::vector<uint32_t> w(10007);
              words(w.data(), 10007, 12345, rounding);
              return digest(w);
            }),
            0xff32e514b56e1698ull);
}

// The same kernel written apart from this library, with compilers' fma and without it, gave this
// hash of 2^19 samples (FNV-1a from its own starting value).
TEST(Stream, GaussianEqualsAnIndependentImplementation) {
  const int64_t n = 1 << 19;
  std::vector<float> z(n);
  stream_scalar.sample(z.data(), n, 0, Key{0x12345678u, 0x9abcdef0u}, 7, kRoleZ, Dist::gaussian);
  EXPECT_EQ(digest(z.data(), n * sizeof(float), 1469598103934665603ull), 0x516887fd3cec4013ull);
}

class StreamDist : public ::testing::TestWithParam<Dist> {};

TEST_P(StreamDist, SameBitsForEverySizeOffsetIsaAndThreadCount) {
  const Stream s{.seed = 42, .step = 1, .param = 3};
  for (int64_t n : kAwkward)
    for (int64_t offset : {int64_t{0}, int64_t{1}, int64_t{2047}, (int64_t{1} << 38) + 5}) {
      const auto x = noise(n, 1);
      same_everywhere([&] {
        std::vector<float> z(static_cast<size_t>(n)), y = x;
        sample(z.data(), n, offset, s, GetParam());
        add_scaled(y.data(), 1e-3f, n, offset, s, GetParam());
        const double d = dot(x.data(), n, offset, s, GetParam());
        return digest(&d, sizeof d, digest(y) ^ digest(z));
      });
    }
}

TEST_P(StreamDist, AnyCutGivesTheSameElements) {
  const Stream s{.seed = 1};
  const int64_t n = 5000;
  std::vector<float> whole(n), parts(n);
  sample(whole.data(), n, 77, s, GetParam());
  for (int64_t at = 0, len = 1; at < n; at += len, len = len * 3 + 1)
    sample(parts.data() + at, std::min(len, n - at), 77 + at, s, GetParam());
  EXPECT_EQ(digest(whole), digest(parts));
}

TEST_P(StreamDist, AddAndDotAgreeWithSample) {
  const Stream s{.seed = 9, .step = 2};
  const int64_t n = 4999;
  std::vector<float> z(n);
  sample(z.data(), n, 3, s, GetParam());
  const auto x = noise(n, 5);
  auto y = x;
  add_scaled(y.data(), 0.25f, n, 3, s, GetParam());
  double want = 0;
  for (int64_t i = 0; i < n; ++i) {
    EXPECT_EQ(y[i], x[i] + 0.25f * z[i]);
    want += static_cast<double>(x[i]) * z[i];
  }
  // 64 lanes of 64 products in fp32: |error| <= 70 * 2^-24 * sum |x z|.
  EXPECT_NEAR(dot(x.data(), n, 3, s, GetParam()), want, 70 * 0x1p-24 * 4000);
}

// Fixed seeds, so the bounds (5 sigma) can fail only if the generator changes.
TEST_P(StreamDist, MomentsOfTheDistribution) {
  const int64_t n = 1 << 20;
  std::vector<float> z(n);
  sample(z.data(), n, 0, Stream{.seed = 3}, GetParam());
  double m1 = 0, m2 = 0, m4 = 0, lag = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double v = z[i];
    m1 += v, m2 += v * v, m4 += v * v * v * v;
    if (i > 0) lag += v * z[i - 1];
  }
  const double sigma = 1 / std::sqrt(static_cast<double>(n));
  EXPECT_NEAR(m1 / n, 0, 5 * sigma);
  EXPECT_NEAR(lag / n, 0, 5 * sigma);
  const double kurtosis[] = {1, 3, 2.69999, 2.96026};
  const double m8 = 96 + 9;  // of the Gaussian, whose tails are the longest
  const double k = kurtosis[static_cast<int>(GetParam())];
  EXPECT_NEAR(m2 / n, 1, 5 * std::sqrt(k - 1) * sigma);
  EXPECT_NEAR(m4 / n, k, k == 1 ? 0 : 5 * std::sqrt(m8 - k * k) * sigma);
}

TEST_P(StreamDist, EveryCoordinateOfTheAddressMatters) {
  const Stream base{.seed = 1, .step = 1, .slot = 1, .param = 1, .role = 1};
  auto d = [&](Stream s) {
    std::vector<float> z(256);
    sample(z.data(), 256, 0, s, GetParam());
    return digest(z);
  };
  std::vector<uint64_t> seen = {d(base)};
  for (int i = 0; i < 6; ++i) {
    Stream s = base;
    if (i == 0) s.seed ^= 1ull << 40;  // the high half of the seed counts too
    if (i == 1) s.step = 2;
    if (i == 2) s.slot = 2;
    if (i == 3) s.param = 2;
    if (i == 4) s.role = 2;
    if (i == 5) s.step += 1ull << 33;
    seen.push_back(d(s));
    for (size_t j = 0; j + 1 < seen.size(); ++j) EXPECT_NE(seen[j], seen.back());
  }
}

const char* const kNames[] = {"rademacher", "gaussian", "ih4", "lut8"};

INSTANTIATE_TEST_SUITE_P(Dist, StreamDist,
                         ::testing::Values(Dist::rademacher, Dist::gaussian, Dist::ih4, Dist::lut8),
                         [](const auto& info) { return kNames[static_cast<int>(info.param)]; });

TEST(Stream, NegativeSizesAreRefused) {
  float x = 1;
  EXPECT_THROW(sample(&x, -1, 0, {}, Dist::gaussian), Error);
  EXPECT_THROW(add_scaled(&x, 1, 1, -1, {}, Dist::gaussian), Error);
  EXPECT_THROW(sample(&x, 1, 0, {}, static_cast<Dist>(4)), Error);
  EXPECT_THROW(dot(&x, 1, 0, {}, static_cast<Dist>(-1)), Error);
}

}  // namespace
}  // namespace lowtide::random
