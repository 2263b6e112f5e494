// SPDX-License-Identifier: Apache-2.0
// A basis of each type for the tests, with its numbers as doubles beside it.
#pragma once
#include <cstdint>
#include <vector>

#include "base/hd.h"
#include "curvature/krylov_order.h"
#include "testing.h"

namespace lowtide::curvature {

struct TestBasis {
  BasisType type;
  int64_t rows, n;
  std::vector<float> f32;
  std::vector<uint16_t> bf16;
  std::vector<uint8_t> int8;
  std::vector<float> scale;

  TestBasis(BasisType t, int64_t r, int64_t columns, uint64_t seed, float size = 1.0f)
      : type(t), rows(r), n(columns) {
    const auto x = ::lowtide::testing::noise(rows * n, seed);
    if (type == BasisType::int8) {
      for (float v : x) int8.push_back(static_cast<uint8_t>(128 + static_cast<int>(v * 127.0f)));
      scale = ::lowtide::testing::noise(rows * krylov_groups(n), seed + 1);
      for (float& s : scale) s = (s + 1.25f) * size / 127.0f;
      return;
    }
    for (float v : x) {
      f32.push_back(v * size);
      bf16.push_back(float_to_bf16(v * size));
    }
    if (type == BasisType::bf16) f32.clear();
    if (type == BasisType::f32) bf16.clear();
  }

  Basis view() const {
    if (type == BasisType::int8) return {int8.data(), scale.data(), type, rows, n};
    if (type == BasisType::bf16) return {bf16.data(), nullptr, type, rows, n};
    return {f32.data(), nullptr, type, rows, n};
  }

  double at(int64_t row, int64_t k) const {
    const auto i = static_cast<size_t>(row * n + k);
    if (type == BasisType::f32) return f32[i];
    if (type == BasisType::bf16) return bf16_to_float(bf16[i]);
    const auto g = static_cast<size_t>(row * krylov_groups(n) + k / kKrylovGroup);
    return (static_cast<int>(int8[i]) - 128) * static_cast<double>(scale[g]);
  }
};

inline const std::vector<BasisType> kBasisTypes = {BasisType::f32, BasisType::bf16,
                                                   BasisType::int8};

}  // namespace lowtide::curvature
