// SPDX-License-Identifier: Apache-2.0
// csrc/torch/cuda/device.h on the PTX emulator: CPU tensors stand for a device's. Kernels may touch
// only what an op took from a tensor, for as long as the op lasts, and new memory holds NaNs.
#include <cuda_runtime_api.h>

#include <cstring>

#include "memory.h"
#include "torch/cuda/device.h"

namespace lowtide::torch_ops {
namespace {

int depth = 0;

// Bytes from the first to the last element.
size_t extent(const Tensor& t) {
  if (t.numel() == 0) return 0;
  int64_t last = 0;
  for (int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
  return static_cast<size_t>(last + 1) * t.element_size();
}

void* adopt(const Tensor& t, void* p) {
  STD_TORCH_CHECK(depth > 0, "lowtide: memory was taken outside of OnDevice");
  emu::DeviceMemory::Adopt(p, extent(t));
  return p;
}

}  // namespace

OnDevice::OnDevice(const Tensor& t) { enter(t); }

OnDevice::OnDevice(const std::vector<Tensor>& list) {
  STD_TORCH_CHECK(!list.empty(), "lowtide: the list of tensors is empty");
  enter(list[0]);
}

void OnDevice::enter(const Tensor& t) {
  STD_TORCH_CHECK(t.is_cpu(), "lowtide: the emulated device has CPU tensors");
  ++depth;
}

OnDevice::~OnDevice() {
  if (--depth == 0) emu::DeviceMemory::Disown();
}

bool is_here(const Tensor& t) { return t.is_cpu(); }

void* data(const Tensor& t) { return adopt(t, t.mutable_data_ptr()); }
const void* const_data(const Tensor& t) { return adopt(t, const_cast<void*>(t.const_data_ptr())); }

void check(int error, const char* op) {
  STD_TORCH_CHECK(error != cudaErrorInvalidValue, "lowtide: ", op,
                  ": an argument is outside of what the CUDA kernel takes");
  STD_TORCH_CHECK(error == cudaSuccess, "lowtide: ", op, ": ",
                  cudaGetErrorString(static_cast<cudaError_t>(error)));
}

Tensor empty(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef size, ScalarType dtype) {
  const Tensor t = torch::stable::new_empty(like, size, dtype);
  if (t.numel() > 0) std::memset(t.mutable_data_ptr(), 0xFF, extent(t));
  return t;
}

}  // namespace lowtide::torch_ops
