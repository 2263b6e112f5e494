// SPDX-License-Identifier: Apache-2.0
#include "optim/fused_step.h"

#include <limits>
#include <memory>

#include "device.h"
#include "optim/fused_step_cuda.h"
#include "quant/group_format.h"
#include "testing.h"

namespace lowtide::optim {
namespace {

using ::lowtide::testing::DeviceArray;
using ::lowtide::testing::noise;
using ::lowtide::testing::SameBits;
using ::lowtide::testing::sizes;

struct Config {
  WeightStore store = WeightStore::f32;
  Dtype g_dtype = Dtype::f32;
  StateKind states = StateKind::f32;
  StepTarget target = StepTarget::weight;
};

std::vector<uint16_t> words_of(const std::vector<float>& x, bool bf16) {
  std::vector<uint16_t> out;
  for (float v : x) {
    if (bf16) {
      out.push_back(float_to_bf16(v));
    } else {
      out.push_back(static_cast<uint16_t>(float_bits(v)));
      out.push_back(static_cast<uint16_t>(float_bits(v) >> 16));
    }
  }
  return out;
}

// One tensor on both sides. Everything but absmax is held as bytes or 16-bit words, so that NaNs
// compare too.
struct Both {
  std::vector<uint16_t> p, g;
  std::vector<float> m, v, w, m_absmax, v_absmax, w_absmax;
  std::vector<uint8_t> m_codes, v_codes, w_codes;
  StepTensor host, device;
  std::unique_ptr<DeviceArray<uint16_t>> dp, dg;
  std::unique_ptr<DeviceArray<float>> dm, dv, dw, dma, dva, dwa;
  std::unique_ptr<DeviceArray<uint8_t>> dmc, dvc, dwc;

  Both(int64_t n, const Config& c, uint32_t param, int64_t offset, size_t skew,
       const std::vector<float>& gradient) {
    const int64_t part = state_block(c.states), blocks = (n + part - 1) / part;
    host.states = c.states;
    const bool p16 = c.store != WeightStore::f32, g16 = c.g_dtype == Dtype::bf16;
    host.n = n, host.param = param, host.offset = offset, host.target = c.target;
    host.weight_store = c.store, host.g_dtype = c.g_dtype;
    p = words_of(noise(n, param + 1), p16), g = words_of(gradient, g16);
    device = host;
    dp = std::make_unique<DeviceArray<uint16_t>>(p, p16 ? skew : 2 * skew);
    dg = std::make_unique<DeviceArray<uint16_t>>(g, g16 ? skew : 2 * skew);
    if (c.target == StepTarget::weight) host.p = p.data(), device.p = dp->data();
    host.g = g.data(), device.g = dg->data();
    if (c.states != StateKind::f32) {
      const int64_t bytes = c.states == StateKind::dynamic8 ? n : quant::int4_bytes(n);
      for (int64_t i = 0; i < bytes; ++i) {
        m_codes.push_back(static_cast<uint8_t>(i * 37 + param));
        v_codes.push_back(static_cast<uint8_t>(i * 11 + 3 * param));
        w_codes.push_back(static_cast<uint8_t>(i * 59 + 7 * param));
      }
      for (int64_t b = 0; b < blocks; ++b) {
        m_absmax.push_back(b % 5 == 4 ? 0.0f : 0.01f * static_cast<float>(b + 1));
        v_absmax.push_back(b % 5 == 4 ? 0.0f : 0.0001f * static_cast<float>(b + 2));
        w_absmax.push_back(b % 5 == 3 ? 0.0f : 0.5f * static_cast<float>(b + 1));
      }
      dmc = std::make_unique<DeviceArray<uint8_t>>(m_codes, skew),
      dvc = std::make_unique<DeviceArray<uint8_t>>(v_codes, skew);
      dwc = std::make_unique<DeviceArray<uint8_t>>(w_codes, skew);
      dwa = std::make_unique<DeviceArray<float>>(w_absmax);
      host.w_codes = w_codes.data(), host.w_absmax = w_absmax.data();
      device.w_codes = dwc->data(), device.w_absmax = dwa->data();
      dma = std::make_unique<DeviceArray<float>>(m_absmax),
      dva = std::make_unique<DeviceArray<float>>(v_absmax);
      host.m_codes = m_codes.data(), host.v_codes = v_codes.data();
      host.m_absmax = m_absmax.data(), host.v_absmax = v_absmax.data();
      device.m_codes = dmc->data(), device.v_codes = dvc->data();
      device.m_absmax = dma->data(), device.v_absmax = dva->data();
    } else {
      m = noise(n, param + 2), v = noise(n, param + 3), w = noise(n, param + 4);
      for (float& x : v) x = abs_f(x);
      dm = std::make_unique<DeviceArray<float>>(m, skew),
      dv = std::make_unique<DeviceArray<float>>(v, skew);
      dw = std::make_unique<DeviceArray<float>>(w, skew), host.w = w.data(), device.w = dw->data();
      host.m = m.data(), host.v = v.data(), device.m = dm->data(), device.v = dv->data();
    }
  }

  void Expect() const {
    SCOPED_TRACE(::testing::Message()
                 << "n " << host.n << " store " << static_cast<int>(host.weight_store) << " g "
                 << static_cast<int>(host.g_dtype) << " states " << static_cast<int>(host.states)
                 << " target " << static_cast<int>(host.target));
    EXPECT_TRUE(SameBits(dp->host(), p)) << "weights";
    EXPECT_TRUE(SameBits(dg->host(), g)) << "gradient or direction";
    if (dm != nullptr) {
      EXPECT_TRUE(SameBits(dm->host(), m)) << "m";
      EXPECT_TRUE(SameBits(dv->host(), v)) << "v";
      EXPECT_TRUE(SameBits(dw->host(), w)) << "w";
    } else {
      EXPECT_TRUE(SameBits(dmc->host(), m_codes)) << "codes of m";
      EXPECT_TRUE(SameBits(dvc->host(), v_codes)) << "codes of v";
      EXPECT_TRUE(SameBits(dma->host(), m_absmax)) << "absmax of m";
      EXPECT_TRUE(SameBits(dva->host(), v_absmax)) << "absmax of v";
      EXPECT_TRUE(SameBits(dwc->host(), w_codes)) << "codes of w";
      EXPECT_TRUE(SameBits(dwa->host(), w_absmax)) << "absmax of w";
    }
  }
};

using List = std::vector<std::unique_ptr<Both>>;

class FusedStepCuda : public ::lowtide::testing::ScalarReference {
 protected:
  static std::vector<StepRule> rules() {
    return {make_adam_rule(1e-3, 1.1, 1e-8, 0.9, 0.999, 0.9999, 1.0),
            make_adabelief_rule(1e-3, 1.1, 1e-16, 0.9, 0.999, 1.0, 0.9999),
            make_lion_rule(1e-3, 0.9, 0.99, 0.9999, 1.0),
            make_sgd_rule(1e-3, 0.9, 0.5, true, 0.9999, 1.0),
            make_sign_rule(1e-3, 0.9999, 1.0),
            make_diffgrad_rule(1e-3, 1.1, 1e-8, 0.9, 0.999, 0.9999, 1.0)};
  }

  void Check(const List& list, const StepRule& rule) {
    SCOPED_TRACE(::testing::Message() << "rule " << static_cast<int>(rule.kind));
    std::vector<StepTensor> host, device;
    for (const auto& b : list) host.push_back(b->host), device.push_back(b->device);
    DeviceArray<int64_t> skipped(std::vector<int64_t>{-1});
    for (uint64_t step = 1; step <= 2;
         ++step) {  // the second step starts from states this kernel wrote
      ASSERT_EQ(cuda::fused_step(device, rule, 11, step, skipped.data(), nullptr), 0);
      const int64_t want = fused_step(host, rule, 11, step);
      EXPECT_EQ(skipped.host()[0], want);
      for (const auto& b : list) b->Expect();
    }
  }
  void Check(const List& list) { Check(list, rules()[0]); }
};

constexpr StateKind kStates[] = {StateKind::f32, StateKind::dynamic8, StateKind::dynamic4};

TEST_F(FusedStepCuda, SameBitsForEverySizeStoreStateAndTarget) {
  for (StateKind states : kStates)
    for (int64_t n : sizes({0, 1, 127, 129, 256, 257, 1027}, {10005}))
      for (size_t skew : {0, 1}) {
        for (WeightStore store :
             {WeightStore::f32, WeightStore::bf16_nearest, WeightStore::bf16_stochastic})
          for (Dtype g : {Dtype::f32, Dtype::bf16}) {
            List list;
            list.push_back(std::make_unique<Both>(n, Config{store, g, states, StepTarget::weight},
                                                  5, 1 << 20, skew, noise(n, 9)));
            Check(list);
          }
        List list;
        list.push_back(std::make_unique<Both>(
            n, Config{WeightStore::f32, Dtype::f32, states, StepTarget::direction}, 5, 0, skew,
            noise(n, 9)));
        Check(list);
      }
}

TEST_F(FusedStepCuda, SameBitsForEveryRule) {
  for (const StepRule& rule : rules())
    for (StateKind states : kStates)
      for (int64_t n : {17, 47, 300, 2049})
        for (StepTarget target : {StepTarget::weight, StepTarget::direction}) {
          List list;
          list.push_back(std::make_unique<Both>(
              n, Config{WeightStore::f32, Dtype::f32, states, target}, 5, 0, 0, noise(n, 9)));
          Check(list, rule);
        }
}

TEST_F(FusedStepCuda, ListsLongerThanABatch) {
  List list;
  for (uint32_t i = 0; i < 45; ++i) {
    const int64_t n = i % 7 == 0 ? 0 : 31 * i + i % 5;
    Config c{static_cast<WeightStore>(i % 3), i % 2 ? Dtype::bf16 : Dtype::f32, kStates[i % 4 % 3],
             StepTarget::weight};
    list.push_back(std::make_unique<Both>(n, c, i, 256 * (i % 4), i % 2, noise(n, i)));
  }
  Check(list);
  Check({});
}

// Blocks with non-finite gradients, or gradients whose square overflows, are left alone and
// counted.
TEST_F(FusedStepCuda, NonFiniteBlocksAreSkipped) {
  for (StateKind states : kStates)
    for (StepTarget target : {StepTarget::weight, StepTarget::direction}) {
      std::vector<float> g = noise(256 * 5 + 7, 3);
      g[300] = std::numeric_limits<float>::quiet_NaN();
      g[256 * 3] = std::numeric_limits<float>::infinity();
      g[256 * 5 + 6] = 3e38f;
      List list;
      list.push_back(std::make_unique<Both>(
          256 * 5 + 7, Config{WeightStore::f32, Dtype::f32, states, target}, 1, 0, 0, g));
      Check(list);
    }
}

// Zero, subnormal and huge values through the coded states.
TEST_F(FusedStepCuda, ExtremeMagnitudes) {
  std::vector<float> g(512, 0.0f);
  for (int i = 0; i < 256; ++i)
    g[static_cast<size_t>(i)] = i % 3 == 0 ? 0.0f : bits_float(static_cast<uint32_t>(i) << 15);
  for (int i = 256; i < 512; ++i)
    g[static_cast<size_t>(i)] =
        (i % 2 ? -1.0f : 1.0f) * bits_float(static_cast<uint32_t>(i % 190) << 23);
  for (const StepRule& rule : rules())
    for (StateKind states : {StateKind::dynamic8, StateKind::dynamic4}) {
      List list;
      list.push_back(std::make_unique<Both>(
          512, Config{WeightStore::bf16_stochastic, Dtype::f32, states, StepTarget::weight}, 1, 0,
          0, g));
      Check(list, rule);
    }
}

TEST_F(FusedStepCuda, BadTensorsAreRefused) {
  DeviceArray<int64_t> skipped(1);
  StepTensor t;
  t.offset = 3;
  EXPECT_EQ(cuda::fused_step({t}, rules()[0], 0, 0, skipped.data(), nullptr),
            cudaErrorInvalidValue);
  t.offset = 0, t.target = StepTarget::direction, t.g_dtype = Dtype::bf16;
  EXPECT_EQ(cuda::fused_step({t}, rules()[0], 0, 0, skipped.data(), nullptr),
            cudaErrorInvalidValue);
}

}  // namespace
}  // namespace lowtide::optim
