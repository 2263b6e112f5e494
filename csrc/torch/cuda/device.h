// SPDX-License-Identifier: Apache-2.0
// What every op on a device does around its kernels. cuda/device.cc is for real devices; the tests
// link another definition, in which the PTX emulator takes host memory for a device's.
//
// Results that are scalars stay on the device, and nothing waits for it, but for what `host` and
// `once` say.
#pragma once
#include <functional>
#include <memory>
#include <vector>

#include "torch/common.h"

namespace lowtide::torch_ops {

// Makes the device of a tensor current for as long as this lives; is_here() holds other tensors
// against it.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& t);
  explicit OnDevice(const std::vector<Tensor>& list);  // the device of the first
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  void* stream() const { return stream_; }  // torch's current one, a cudaStream_t

 private:
  void enter(const Tensor& t);

  std::shared_ptr<void> guard_;
  void* stream_ = nullptr;
  int64_t outer_ = -1;  // the device of the op that called this one
};

// Raises what a launcher gave back: a cudaError_t as int.
void check(int error, const char* op);

// Uninitialised memory on the device of `like`, from torch's allocator.
Tensor empty(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef size, ScalarType dtype);
inline Tensor floats(const Tensor& like, int64_t n) { return empty(like, {n}, ScalarType::Float); }
inline Tensor doubles(const Tensor& like, int64_t n) {
  return empty(like, {n}, ScalarType::Double);
}
template <class T>
T* as(const Tensor& t) {
  return static_cast<T*>(data(t));
}

// n counters and their sum: kernels of a list count for themselves.
class Counters {
 public:
  Counters(const Tensor& like, size_t n)
      : counts_(empty(like, {static_cast<int64_t>(n)}, ScalarType::Long)) {}
  int64_t* at(size_t i) const { return as<int64_t>(counts_) + i; }
  Tensor sum() const { return torch::stable::sum(counts_); }

 private:
  Tensor counts_;
};

// A tensor of host memory. Waits for the device.
Tensor host(const Tensor& t);

// n elements of host memory on the device of `like`; does not wait for the device.
Tensor upload(const void* from, int64_t n, ScalarType dtype, const Tensor& like);

// The float table that `make` fills on the host, made once for a device and key and kept; waits for
// the device that one time.
const float* once(const Tensor& like, const char* kind, int64_t key, int64_t size,
                  const std::function<void(float*)>& make);

}  // namespace lowtide::torch_ops
