// SPDX-License-Identifier: Apache-2.0
#include "optim/apply_update.h"

#include <memory>

#include "device.h"
#include "optim/apply_update_cuda.h"
#include "testing.h"

namespace lowtide::optim {
namespace {

using ::lowtide::testing::DeviceArray;
using ::lowtide::testing::noise;
using ::lowtide::testing::SameBits;
using ::lowtide::testing::sizes;

// One tensor on both sides; weights as raw 16-bit words, two an element in float32.
struct Both {
  std::vector<float> u;
  std::vector<uint16_t> p;
  UpdateTensor host, device;
  std::unique_ptr<DeviceArray<uint16_t>> dp;
  std::unique_ptr<DeviceArray<float>> du;

  Both(int64_t n, WeightStore store, uint32_t param, int64_t offset, size_t skew)
      : u(noise(n, param)) {
    for (float v : noise(n, param + 50)) {
      if (store == WeightStore::f32) {
        p.push_back(static_cast<uint16_t>(float_bits(v)));
        p.push_back(static_cast<uint16_t>(float_bits(v) >> 16));
      } else {
        p.push_back(float_to_bf16(v));
      }
    }
    dp = std::make_unique<DeviceArray<uint16_t>>(p, store == WeightStore::f32 ? 2 * skew : skew);
    du = std::make_unique<DeviceArray<float>>(u, skew);
    host = {n, param, offset, store, p.data(), u.data()};
    device = {n, param, offset, store, dp->data(), du->data()};
  }
};

class ApplyUpdateCuda : public ::lowtide::testing::ScalarReference {
 protected:
  static void Check(std::vector<std::unique_ptr<Both>> list) {
    const UpdateRule rule = make_update_rule(-0.037, 0.999, 0.99);
    std::vector<UpdateTensor> host, device;
    for (const auto& b : list) host.push_back(b->host), device.push_back(b->device);
    ASSERT_EQ(cuda::apply_update(device, rule, 7, 3, nullptr), 0);
    apply_update(host, rule, 7, 3);
    for (const auto& b : list)
      EXPECT_TRUE(SameBits(b->dp->host(), b->p))
          << "n " << b->host.n << " store " << static_cast<int>(b->host.weight_store);
  }
};

const WeightStore kStores[] = {WeightStore::f32, WeightStore::bf16_nearest,
                               WeightStore::bf16_stochastic};

TEST_F(ApplyUpdateCuda, SameBitsForEverySizeStoreAndAlignment) {
  for (WeightStore store : kStores)
    for (int64_t n : sizes({0, 1, 3, 127, 129, 255, 256, 257, 1027}, {20005}))
      for (size_t skew : {0, 1, 2}) {
        std::vector<std::unique_ptr<Both>> list;
        list.push_back(std::make_unique<Both>(n, store, 5, (int64_t{1} << 36) + 768, skew));
        Check(std::move(list));
      }
}

// More tensors than one launch carries, empty ones among them.
TEST_F(ApplyUpdateCuda, ListsLongerThanABatch) {
  std::vector<std::unique_ptr<Both>> list;
  for (uint32_t i = 0; i < 71; ++i)
    list.push_back(std::make_unique<Both>(i % 7 == 0 ? 0 : 40 * i + i % 5, kStores[i % 3], i,
                                          256 * (i % 4), i % 2));
  Check(std::move(list));
  Check({});
}

TEST_F(ApplyUpdateCuda, BadTensorsAreRefusedAndNothingIsWritten) {
  DeviceArray<float> p(std::vector<float>{1, 2}), u(std::vector<float>{1, 1});
  const UpdateRule rule = make_update_rule(1, 1, 1);
  const UpdateTensor good = {2, 0, 0, WeightStore::f32, p.data(), u.data()};
  UpdateTensor bad = good;
  bad.offset = 5;
  EXPECT_EQ(cuda::apply_update({good, bad}, rule, 0, 0, nullptr), cudaErrorInvalidValue);
  EXPECT_TRUE(SameBits(p.host(), {1, 2}));
}

}  // namespace
}  // namespace lowtide::optim
