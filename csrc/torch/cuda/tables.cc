// SPDX-License-Identifier: Apache-2.0
// Copies between host and device, and tables that are kept, by torch's own means: the same on a
// real and on the emulated device.
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <tuple>

#include "torch/cuda/device.h"

namespace lowtide::torch_ops {
namespace {

Tensor host_empty(int64_t n, ScalarType dtype) {
  return torch::stable::empty({n}, dtype, std::nullopt,
                              torch::stable::Device(torch::headeronly::DeviceType::CPU));
}

}  // namespace

Tensor host(const Tensor& t) {
  return torch::stable::to(t, torch::stable::Device(torch::headeronly::DeviceType::CPU));
}

Tensor upload(const void* from, int64_t n, ScalarType dtype, const Tensor& like) {
  const Tensor staging = host_empty(n, dtype);
  if (n > 0)
    std::memcpy(staging.mutable_data_ptr(), from, static_cast<size_t>(n) * staging.element_size());
  Tensor out = empty(like, {n}, dtype);
  // Pageable memory has been read when the call returns.
  torch::stable::copy_(out, staging, /*non_blocking=*/true);
  return out;
}

const float* once(const Tensor& like, const char* kind, int64_t key, int64_t size,
                  const std::function<void(float*)>& make) {
  using Key = std::tuple<int64_t, std::string, int64_t>;
  static std::mutex mutex;
  // Never destroyed: at exit torch's allocator may be gone before this module.
  static auto& tables = *new std::map<Key, Tensor>;
  const std::lock_guard<std::mutex> lock(mutex);
  const Key at{like.get_device_index(), kind, key};
  auto found = tables.find(at);
  if (found == tables.end()) {
    const Tensor made = host_empty(size, ScalarType::Float);
    make(static_cast<float*>(made.mutable_data_ptr()));
    Tensor table = floats(like, size);
    // Another stream may ask for it next.
    torch::stable::copy_(table, made, /*non_blocking=*/false);
    found = tables.emplace(at, table).first;
  }
  return static_cast<const float*>(const_data(found->second));
}

}  // namespace lowtide::torch_ops
