// SPDX-License-Identifier: Apache-2.0
#include "spsa/digest.h"

#include <set>
#include <vector>

#include "base/error.h"
#include "testing.h"

namespace lowtide::spsa {
namespace {

using namespace ::lowtide::testing;

class Digest : public ::testing::TestWithParam<int> {};

TEST_P(Digest, SameForEverySizeIsaAndThreadCount) {
  const int width = GetParam();
  for (int64_t n : kAwkward) {
    const auto x = noise(n, 1);
    for (int64_t offset : {int64_t{0}, (int64_t{1} << 40) + 3})
      same_everywhere([&] { return digest(x.data(), width, n, offset); });
  }
  const auto large = noise(200003, 2);  // several pieces for the threads
  same_everywhere([&] { return digest(large.data(), width, 200003, 0); });
}

TEST_P(Digest, ShardsAddUpToTheWhole) {
  const int width = GetParam();
  const auto x = noise(5001, 3);
  const auto* p = reinterpret_cast<const uint8_t*>(x.data());
  const uint64_t whole = digest(p, width, 5001, 9);
  for (int64_t cut : {0, 1, 64, 777, 5001})
    EXPECT_EQ(whole,
              digest(p, width, cut, 9) + digest(p + cut * width, width, 5001 - cut, 9 + cut));
}

TEST_P(Digest, EveryFlippedBitChangesIt) {
  const int width = GetParam();
  auto x = noise(130, 4);
  auto* bytes = reinterpret_cast<uint8_t*>(x.data());
  std::set<uint64_t> seen = {digest(bytes, width, 130, 0)};
  for (int bit = 0; bit < 130 * width * 8; ++bit) {
    bytes[bit / 8] ^= static_cast<uint8_t>(1 << (bit % 8));
    EXPECT_TRUE(seen.insert(digest(bytes, width, 130, 0)).second) << bit;
    bytes[bit / 8] ^= static_cast<uint8_t>(1 << (bit % 8));
  }
}

TEST_P(Digest, SwappedElementsChangeIt) {
  const int width = GetParam();
  std::vector<uint8_t> x(static_cast<size_t>(200 * width), 0);
  for (int i = 0; i < 200; ++i) x[static_cast<size_t>(i * width)] = static_cast<uint8_t>(i);
  const uint64_t before = digest(x.data(), width, 200, 0);
  for (int i = 0; i < 200; ++i)
    for (int j : {i / 2, (i + 1) % 200, 199 - i}) {
      if (i == j) continue;
      std::swap(x[static_cast<size_t>(i * width)], x[static_cast<size_t>(j * width)]);
      EXPECT_NE(before, digest(x.data(), width, 200, 0)) << i << " " << j;
      std::swap(x[static_cast<size_t>(i * width)], x[static_cast<size_t>(j * width)]);
    }
}

INSTANTIATE_TEST_SUITE_P(Width, Digest, ::testing::Values(1, 2, 4));

TEST(DigestDefinition, KnownAnswers) {
  EXPECT_EQ(mix64(0), 0u);
  EXPECT_EQ(mix64(1), 0x5692161D100B05E5ull);
  EXPECT_EQ(mix64(kDigestStride), 0xE220A8397B1DCDAFull);  // splitmix64, seed 0, first output
  EXPECT_EQ(digest(nullptr, 4, 0, 5), 0u);
  const uint32_t x[2] = {7, 9};
  EXPECT_EQ(digest(x, 4, 2, 3), mix64(7 + 3 * kDigestStride) + mix64(9 + 4 * kDigestStride));
}

TEST(DigestDefinition, BadRangesAreRefused) {
  EXPECT_THROW(digest(nullptr, 4, -1, 0), Error);
  EXPECT_THROW(digest(nullptr, 4, 0, -1), Error);
  EXPECT_THROW(digest(nullptr, 3, 0, 0), Error);
}

}  // namespace
}  // namespace lowtide::spsa
