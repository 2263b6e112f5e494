// SPDX-License-Identifier: Apache-2.0
// Where the tensors of a module's ops lie: in host memory for _ops, on a device for _ops_cuda,
// which is compiled with LOWTIDE_OPS_CUDA and otherwise shares every check of an op's arguments.
#pragma once
#include <torch/csrc/stable/tensor.h>

namespace lowtide::torch_ops {

using torch::stable::Tensor;

#ifdef LOWTIDE_OPS_CUDA
// Whether t lies on the device that the op runs on (OnDevice of cuda/device.h). Refuses a second
// device.
bool is_here(const Tensor& t);
// The memory of t for a kernel.
void* data(const Tensor& t);
const void* const_data(const Tensor& t);
inline constexpr const char* kHere = "CUDA";
#else
inline bool is_here(const Tensor& t) { return t.is_cpu(); }
inline void* data(const Tensor& t) { return t.mutable_data_ptr(); }
inline const void* const_data(const Tensor& t) { return t.const_data_ptr(); }
inline constexpr const char* kHere = "CPU";
#endif

}  // namespace lowtide::torch_ops
