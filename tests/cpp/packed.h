// SPDX-License-Identifier: Apache-2.0
// A quantized matrix that owns its storage, for the tests of the quant family.
#pragma once
#include <vector>

#include "quant/group_codec.h"
#include "testing.h"

namespace lowtide::testing {

struct Packed {
  quant::GroupShape shape;
  std::vector<uint8_t> codes, zero;
  std::vector<float> scale;

  Packed(const quant::GroupShape& s, quant::Scheme scheme)
      : shape(s),
        codes(static_cast<size_t>(s.rows * quant::row_bytes(s)), 0xa5),
        zero(scheme == quant::Scheme::symmetric
                 ? 0
                 : static_cast<size_t>(s.rows * quant::groups_per_row(s))),
        scale(static_cast<size_t>(s.rows * quant::groups_per_row(s)), -1.0f),
        asymmetric_(scheme == quant::Scheme::asymmetric) {
    zero.reserve(1);  // data() is not null for an empty asymmetric matrix
  }
  quant::GroupMatrix out() {
    return {codes.data(), scale.data(), asymmetric_ ? zero.data() : nullptr, shape};
  }
  quant::ConstGroupMatrix in() const {
    return {codes.data(), scale.data(), asymmetric_ ? zero.data() : nullptr, shape};
  }
  uint64_t hash() const {
    return digest(codes) ^ (digest(scale) * 3) ^ (zero.empty() ? 0 : digest(zero) * 5);
  }
  std::vector<float> decoded() const {
    std::vector<float> x(static_cast<size_t>(shape.rows * shape.cols));
    quant::dequantize_groups(in(), x.data(), quant::FloatType::f32);
    return x;
  }

 private:
  bool asymmetric_;
};

inline Packed quantized(const std::vector<float>& x, const quant::GroupShape& s,
                        quant::Scheme scheme, const quant::QuantizeOptions& o = {}) {
  Packed p(s, scheme);
  quant::quantize_groups(x.data(), quant::FloatType::f32, p.out(), o);
  return p;
}

}  // namespace lowtide::testing
