// SPDX-License-Identifier: Apache-2.0
// A group-quantized matrix on the host and on the device; codes are compared with their padding.
#pragma once
#include <memory>

#include "device.h"
#include "quant/group_codec.h"

namespace lowtide::testing {

struct GroupsOnBoth {
  quant::GroupShape shape;
  std::vector<uint8_t> codes, zero;
  std::vector<float> scale;
  std::unique_ptr<DeviceArray<uint8_t>> d_codes, d_zero;
  std::unique_ptr<DeviceArray<float>> d_scale;

  // Filled with a pattern, so that bytes nobody may touch show. `skew` bytes before the codes on
  // the device.
  GroupsOnBoth(const quant::GroupShape& s, quant::Scheme scheme, size_t skew) : shape(s) {
    const size_t groups = static_cast<size_t>(s.rows * quant::groups_per_row(s));
    codes.resize(static_cast<size_t>(s.rows * quant::row_bytes(s)));
    scale.resize(groups);
    if (scheme == quant::Scheme::asymmetric) zero.resize(groups);
    for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(i * 91 + 17);
    for (size_t g = 0; g < groups; ++g) {
      scale[g] = g % 6 == 5 ? 0.0f : 0.003f * static_cast<float>(g % 9 + 1);
      if (!zero.empty())
        zero[g] = static_cast<uint8_t>((g * 5 + 3) & static_cast<size_t>(quant::max_code(s.bits)));
    }
    asymmetric_ = scheme == quant::Scheme::asymmetric;
    d_codes = std::make_unique<DeviceArray<uint8_t>>(codes, skew);
    d_scale = std::make_unique<DeviceArray<float>>(scale);
    d_zero = std::make_unique<DeviceArray<uint8_t>>(zero, asymmetric_ && zero.empty() ? 1 : 0);
  }

  quant::GroupMatrix host() {
    return {codes.data(), scale.data(), asymmetric_ ? zero_or_dummy() : nullptr, shape};
  }
  quant::GroupMatrix device() const {
    return {d_codes->data(), d_scale->data(), asymmetric_ ? d_zero->data() : nullptr, shape};
  }
  void Expect() const {
    EXPECT_TRUE(SameBits(d_codes->host(), codes)) << "codes";
    EXPECT_TRUE(SameBits(d_scale->host(), scale)) << "scales";
    EXPECT_TRUE(SameBits(d_zero->host(), zero)) << "zero points";
  }

 private:
  uint8_t* zero_or_dummy() {
    static uint8_t dummy = 0;
    return zero.empty() ? &dummy : zero.data();
  }
  bool asymmetric_;
};

}  // namespace lowtide::testing
