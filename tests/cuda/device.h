// SPDX-License-Identifier: Apache-2.0
// Shared by the CUDA tests: arrays on the device, and the scalar reference as the oracle.
//
// The same test programs run on the PTX emulator (CI: "PTX executed on the CPU") and, linked with
// the real runtime, on a GPU.
#pragma once
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "base/isa.h"

namespace lowtide::testing {

template <class T>
class DeviceArray {
 public:
  // `skew` elements are kept free before the data, so that pointers of every alignment are met.
  explicit DeviceArray(size_t n, size_t skew = 0) : n_(n), skew_(skew) {
    EXPECT_EQ(cudaMalloc(&base_, (n + skew) * sizeof(T)), cudaSuccess);
  }
  explicit DeviceArray(const std::vector<T>& host, size_t skew = 0)
      : DeviceArray(host.size(), skew) {
    EXPECT_EQ(cudaMemcpy(data(), host.data(), n_ * sizeof(T), cudaMemcpyHostToDevice), cudaSuccess);
  }
  ~DeviceArray() { EXPECT_EQ(cudaFree(base_), cudaSuccess); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return static_cast<T*>(base_) + (base_ != nullptr ? skew_ : 0); }
  std::vector<T> host() const {
    std::vector<T> out(n_);
    EXPECT_EQ(cudaMemcpy(out.data(), data(), n_ * sizeof(T), cudaMemcpyDeviceToHost), cudaSuccess);
    return out;
  }

 private:
  void* base_ = nullptr;
  size_t n_, skew_;
};

class ScalarReference : public ::testing::Test {
 protected:
  void SetUp() override { set_isa(Isa::scalar); }
  void TearDown() override { EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess); }
};

// Same bits, NaN included; the message names the first difference.
template <class T>
::testing::AssertionResult SameBits(const std::vector<T>& got, const std::vector<T>& want) {
  if (got.size() != want.size())
    return ::testing::AssertionFailure() << "sizes " << got.size() << " and " << want.size();
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::memcmp(&got[i], &want[i], sizeof(T)) != 0) {
      return ::testing::AssertionFailure() << "element " << i << " of " << got.size() << ": device "
                                           << +got[i] << ", scalar reference " << +want[i];
    }
  }
  return ::testing::AssertionSuccess();
}

// Under a sanitizer (LT_CUDA_SIZES=small) the small ragged sizes do; they reach every branch of a
// kernel.
inline std::vector<int64_t> sizes(std::vector<int64_t> small, const std::vector<int64_t>& large) {
  const char* which = std::getenv("LT_CUDA_SIZES");
  if (which == nullptr || std::strcmp(which, "small") != 0)
    small.insert(small.end(), large.begin(), large.end());
  return small;
}

}  // namespace lowtide::testing
