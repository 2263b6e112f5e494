// SPDX-License-Identifier: Apache-2.0
// Devices as torch has them: its current stream, its allocator.
#include "torch/cuda/device.h"

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>

namespace lowtide::torch_ops {
namespace {

namespace accelerator = torch::stable::accelerator;

thread_local int64_t current = -1;  // of the op that runs

}  // namespace

OnDevice::OnDevice(const Tensor& t) { enter(t); }

OnDevice::OnDevice(const std::vector<Tensor>& list) {
  STD_TORCH_CHECK(!list.empty(), "lowtide: the list of tensors is empty");
  enter(list[0]);
}

void OnDevice::enter(const Tensor& t) {
  STD_TORCH_CHECK(t.is_cuda(),
                  "lowtide: the tensors of an op must lie on one device, got CPU and "
                  "CUDA tensors");
  const auto index = static_cast<accelerator::DeviceIndex>(t.get_device_index());
  guard_ = std::make_shared<accelerator::DeviceGuard>(index);
  stream_ = accelerator::getCurrentStream(index).nativeHandle();
  outer_ = current;
  current = index;
}

OnDevice::~OnDevice() { current = outer_; }

bool is_here(const Tensor& t) {
  if (!t.is_cuda()) return false;
  const int64_t index = t.get_device_index();
  STD_TORCH_CHECK(index == current,
                  "lowtide: the tensors of an op must lie on one device, got cuda:", current,
                  " and cuda:", index);
  return true;
}

void* data(const Tensor& t) { return t.mutable_data_ptr(); }
const void* const_data(const Tensor& t) { return t.const_data_ptr(); }

void check(int error, const char* op) {
  if (error == cudaSuccess) return;
  const auto e = static_cast<cudaError_t>(error);
  STD_TORCH_CHECK(e != cudaErrorInvalidValue, "lowtide: ", op,
                  ": an argument is outside of what the CUDA kernel takes");
  STD_TORCH_CHECK(false, "lowtide: ", op, ": ", cudaGetErrorName(e), ": ", cudaGetErrorString(e));
}

Tensor empty(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef size, ScalarType dtype) {
  return torch::stable::new_empty(like, size, dtype);
}

}  // namespace lowtide::torch_ops
