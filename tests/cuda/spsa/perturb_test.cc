// SPDX-License-Identifier: Apache-2.0
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "device.h"
#include "spsa/perturb_cuda.h"
#include "testing.h"

namespace lowtide::spsa {
namespace {

using ::lowtide::testing::DeviceArray;
using ::lowtide::testing::SameBits;
using ::lowtide::testing::sizes;
using random::Dist;

class PerturbCuda : public ::lowtide::testing::ScalarReference,
                    public ::testing::WithParamInterface<Dist> {};

std::vector<float> ramp(int64_t n) {
  std::vector<float> x(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) x[i] = static_cast<float>((i * 7919) % 2003 - 1001) * 0x1p-9f;
  return x;
}
std::vector<uint16_t> halves(int64_t n) {
  std::vector<uint16_t> x(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i)
    x[i] = static_cast<uint16_t>((i & 1) << 15 | (0x2000 + i * 37 % 0x1c00));
  return x;
}

TEST_P(PerturbCuda, SameBits) {
  for (int64_t n : sizes({0, 1, 3, 65, 2047, 2049, 4100}, {40001}))
    for (int64_t offset : {int64_t{0}, int64_t{6}, (int64_t{1} << 38) + 4})
      for (size_t skew : {0, 1}) {
        const auto host = ramp(n);
        DeviceArray<float> w(host, skew), x(host, skew), minus(static_cast<size_t>(n), skew);
        const auto f32 = FloatType::f32;
        Perturbation in_place{x.data(), x.data(), f32, f32, n, offset, 1e-3f};
        Perturbation pair{x.data(), w.data(), f32, f32, n, offset, 0.5f, 0.75f, 3, minus.data()};
        auto want = host, want_minus = host;
        ASSERT_EQ(cuda::perturb({in_place}, 1, 2, 3, GetParam(), nullptr), 0);
        in_place.w = in_place.out = want.data();
        perturb({in_place}, 1, 2, 3, GetParam());
        EXPECT_TRUE(SameBits(x.host(), want)) << n << " " << offset << " " << skew;
        ASSERT_EQ(cuda::perturb({pair}, 1, 2, 3, GetParam(), nullptr), 0);
        pair.w = host.data(), pair.out = want.data(), pair.minus = want_minus.data();
        perturb({pair}, 1, 2, 3, GetParam());
        EXPECT_TRUE(SameBits(x.host(), want)) << n << " " << offset << " " << skew;
        EXPECT_TRUE(SameBits(minus.host(), want_minus)) << n << " " << offset << " " << skew;
      }
}

TEST_P(PerturbCuda, EveryTypeSameBits) {
  const int64_t n = 2500;
  const auto host = halves(n);
  for (FloatType in : {FloatType::bf16, FloatType::f16})
    for (FloatType to : {FloatType::f32, FloatType::bf16, FloatType::f16})
      for (int64_t offset : {0, 5}) {
        const size_t words = static_cast<size_t>(to == FloatType::f32 ? 2 * n : n);
        DeviceArray<uint16_t> w(host), out(words);
        std::vector<uint16_t> want(words);
        Perturbation t{out.data(), w.data(), to, in, n, offset, 0.01f, 0.5f, 7};
        ASSERT_EQ(cuda::perturb({t}, 1, 2, 3, GetParam(), nullptr), 0);
        t.out = want.data(), t.w = host.data();
        perturb({t}, 1, 2, 3, GetParam());
        EXPECT_TRUE(SameBits(out.host(), want)) << static_cast<int>(in) << static_cast<int>(to);
      }
}

const char* const kNames[] = {"rademacher", "gaussian", "ih4", "lut8"};

// Of "dist/float32" in the file that the Python tests read too.
std::string committed_digest(const std::string& entry) {
  std::ifstream file(LT_TEST_DATA "/stream_digests.json");
  std::stringstream text;
  text << file.rdbuf();
  const std::string key = "\"fnv1a64\": \"";
  const size_t at = text.str().find(key, text.str().find("\"" + entry + "\""));
  return at == std::string::npos ? "no such entry" : text.str().substr(at + key.size(), 16);
}

TEST_P(PerturbCuda, CommittedDigest) {
  const char* order = std::getenv("LT_EMU_ORDER");
  if (order == nullptr || std::string(order) != "forward")
    GTEST_SKIP() << "2^19 elements take a while: in one order of threads only";
  const int64_t n = 1 << 19;
  DeviceArray<float> z(std::vector<float>(static_cast<size_t>(n)));
  const Perturbation t{z.data(),     z.data(), FloatType::f32, FloatType::f32, n, 0, 1.0f,
                       kNoThreshold, 11};
  ASSERT_EQ(cuda::perturb({t}, 0x0123456789abcdefull, 5, 2, GetParam(), nullptr), 0);
  const auto host = z.host();
  char hex[17];
  std::snprintf(hex, sizeof hex, "%016llx",
                static_cast<unsigned long long>(
                    ::lowtide::testing::digest(host.data(), host.size() * sizeof(float))));
  EXPECT_EQ(hex, committed_digest(std::string(kNames[static_cast<int>(GetParam())]) + "/float32"));
}

INSTANTIATE_TEST_SUITE_P(Dist, PerturbCuda,
                         ::testing::Values(Dist::rademacher, Dist::gaussian, Dist::ih4, Dist::lut8),
                         [](const auto& info) { return kNames[static_cast<int>(info.param)]; });

}  // namespace
}  // namespace lowtide::spsa
