// SPDX-License-Identifier: Apache-2.0
// A schedule's steps in device memory.
#pragma once
#include "spsa/schedule.h"
#include "torch/cuda/device.h"

namespace lowtide::torch_ops {

class DeviceSteps {
 public:
  DeviceSteps(const spsa::Schedule& schedule, const Tensor& like)
      : DeviceSteps(spsa::resolve(schedule), like) {}

  const spsa::Step* steps() const { return as<const spsa::Step>(steps_); }
  int64_t count() const { return count_; }
  const spsa::Direction* directions() const { return as<const spsa::Direction>(directions_); }

 private:
  DeviceSteps(const spsa::Steps& resolved, const Tensor& like)
      : steps_(bytes(resolved.steps, like)),
        directions_(bytes(resolved.directions, like)),
        count_(static_cast<int64_t>(resolved.steps.size())) {}

  template <class T>
  static Tensor bytes(const std::vector<T>& from, const Tensor& like) {
    return upload(from.data(), static_cast<int64_t>(from.size() * sizeof(T)), ScalarType::Byte,
                  like);
  }

  Tensor steps_, directions_;
  int64_t count_;
};

}  // namespace lowtide::torch_ops
