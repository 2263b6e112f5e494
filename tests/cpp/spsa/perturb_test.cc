// SPDX-License-Identifier: Apache-2.0
#include "spsa/perturb.h"

#include <cmath>
#include <vector>

#include "base/error.h"
#include "random/stream.h"
#include "spsa/perturb_scalar.h"
#include "testing.h"

namespace lowtide::spsa {
namespace {

using namespace ::lowtide::testing;
using random::Dist;

constexpr FloatType kTypes[] = {FloatType::f32, FloatType::bf16, FloatType::f16};
constexpr Dist kAllDists[] = {Dist::rademacher, Dist::gaussian, Dist::ih4, Dist::lut8};

// n elements of a type, as bytes.
std::vector<uint8_t> stored(const std::vector<float>& x, FloatType type) {
  std::vector<uint8_t> bytes(x.size() * static_cast<size_t>(bytes_of(type)));
  for (size_t i = 0; i < x.size(); ++i)
    put_element(bytes.data(), type, static_cast<int64_t>(i), x[i]);
  return bytes;
}

// Weights with zeros of both signs, float denormals, and what half and bfloat16 overflow on.
std::vector<float> weights(int64_t n) {
  auto x = noise(n, 3);
  const float odd[] = {0.0f, -0.0f, 0x1p-140f, -0x1p-149f, 0x1p-20f, 7e4f, -3.4e38f, 1e-8f};
  for (int64_t i = 0; i < n; i += 7)
    x[static_cast<size_t>(i)] = odd[static_cast<size_t>(i / 7 % 8)];
  return x;
}

class Perturb : public ::testing::TestWithParam<Dist> {};

TEST_P(Perturb, IsItsDefinitionForEveryTypeMaskAndPair) {
  const int64_t n = 5003, offset = 777;
  const float scale = 1e-3f;
  const random::Stream s{.seed = 5, .step = 7, .slot = 2, .param = 4};
  std::vector<float> z(n);
  random::sample(z.data(), n, offset, s, GetParam());
  for (FloatType in : kTypes)
    for (FloatType to : kTypes)
      for (float threshold : {kNoThreshold, 0.25f, 0.0f}) {
        const auto w = stored(weights(n), in);
        std::vector<float> up(n), down(n);
        for (int64_t i = 0; i < n; ++i) {
          const float x = element_at(w.data(), in, i), p = scale * z[i];
          up[i] = std::fabs(x) > threshold ? x : x + p;
          down[i] = std::fabs(x) > threshold ? x : x - p;
        }
        const auto want_up = stored(up, to), want_down = stored(down, to);
        same_everywhere([&] {
          auto plus = want_down, minus = want_up, alone = want_down;
          const auto before = w;
          Perturbation t{alone.data(), w.data(), to, in, n, offset, scale, threshold, s.param};
          perturb({t}, s.seed, s.step, s.slot, GetParam());
          t.out = plus.data(), t.minus = minus.data();
          perturb({t}, s.seed, s.step, s.slot, GetParam());
          EXPECT_EQ(alone, want_up);
          EXPECT_EQ(plus, want_up);
          EXPECT_EQ(minus, want_down);
          EXPECT_EQ(w, before);
          return digest(plus);
        });
      }
}

TEST_P(Perturb, SameBitsForEverySizeOffsetIsaAndThreadCount) {
  for (int64_t n : kAwkward)
    for (int64_t offset : {int64_t{0}, int64_t{1}, int64_t{2047}, (int64_t{1} << 38) + 5}) {
      const auto w = weights(n);
      same_everywhere([&] {
        auto x = w;
        std::vector<uint16_t> half(w.size()), minus(w.size());
        perturb({{x.data(), x.data(), FloatType::f32, FloatType::f32, n, offset, 0.1f}}, 1, 2, 3,
                GetParam());
        perturb({{half.data(), w.data(), FloatType::f16, FloatType::f32, n, offset, 0.1f, 0.5f, 9,
                  minus.data()}},
                1, 2, 3, GetParam());
        return digest(x) ^ digest(half) * 3 ^ digest(minus) * 7;
      });
    }
}

TEST_P(Perturb, ShardsAndListsGiveTheElementsOfTheWhole) {
  const int64_t n = 50001;  // several pieces for the threads
  const auto w = weights(n);
  std::vector<float> whole(w.size()), parts(w.size()), other(100), alone(100);
  perturb({{whole.data(), w.data(), FloatType::f32, FloatType::f32, n, 0, 0.5f, kNoThreshold, 8}},
          1, 2, 3, GetParam());
  std::vector<Perturbation> list;
  for (int64_t at = 0, len = 1; at < n; at += len, len = len * 3 + 1) {
    const int64_t m = std::min(len, n - at);
    list.push_back({parts.data() + at, w.data() + at, FloatType::f32, FloatType::f32, m, at, 0.5f,
                    kNoThreshold, 8});
  }
  const Perturbation second{other.data(), w.data(), FloatType::f32, FloatType::f32, 100, 0, 0.25f,
                            0.5f,         9};
  list.push_back(second);
  list.push_back({nullptr, nullptr});  // an empty tensor
  perturb(list, 1, 2, 3, GetParam());
  EXPECT_EQ(digest(whole), digest(parts));
  Perturbation single = second;
  single.out = alone.data();
  perturb({single}, 1, 2, 3, GetParam());
  EXPECT_EQ(digest(alone), digest(other));
}

TEST_P(Perturb, TheMiddleOfAPairIsTheWeight) {
  const int64_t n = 4096;
  const auto w = noise(n, 1);
  std::vector<float> plus(n), minus(n);
  perturb({{plus.data(), w.data(), FloatType::f32, FloatType::f32, n, 0, 1e-3f, kNoThreshold, 0,
            minus.data()}},
          1, 2, 3, GetParam());
  for (int64_t i = 0; i < n; ++i)  // each of the sums is off by half an ulp of at most 1.01
    EXPECT_NEAR(0.5 * (static_cast<double>(plus[i]) + minus[i]), w[i], 0x1p-24);
}

const char* const kNames[] = {"rademacher", "gaussian", "ih4", "lut8"};
INSTANTIATE_TEST_SUITE_P(Dist, Perturb, ::testing::ValuesIn(kAllDists),
                         [](const auto& info) { return kNames[static_cast<int>(info.param)]; });

TEST(PerturbChecks, RefuseBeforeAnythingIsWritten) {
  std::vector<float> x(10, 1.0f), y(10, 2.0f), z(10, 3.0f);
  const Perturbation good{y.data(), x.data(), FloatType::f32, FloatType::f32, 10, 0, 1.0f};
  const auto refused = [&](auto change) {
    Perturbation bad = good;
    change(bad);
    EXPECT_THROW(perturb({good, bad}, 1, 2, 3, Dist::gaussian), Error);
    EXPECT_EQ(y, std::vector<float>(10, 2.0f));
  };
  refused([](auto& t) { t.n = -1; });
  refused([](auto& t) { t.offset = -1; });
  refused([](auto& t) { t.threshold = NAN; });
  refused([](auto& t) { t.threshold = -1; });
  refused([&](auto& t) { t.out = x.data() + 3; });
  refused([&](auto& t) { t.out = x.data(), t.out_type = FloatType::bf16; });
  refused([&](auto& t) { t.minus = x.data(); });
  refused([&](auto& t) { t.minus = y.data() + 1; });
  EXPECT_THROW(perturb({good}, 1, 2, 3, static_cast<Dist>(4)), Error);
  EXPECT_EQ(y, std::vector<float>(10, 2.0f));
}

}  // namespace
}  // namespace lowtide::spsa
