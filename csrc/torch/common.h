// SPDX-License-Identifier: Apache-2.0
// Shared by the torch op files: a boxing macro that refuses the types the stable ABI gets silently
// wrong, and argument checks with messages that name the argument.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <type_traits>
#include <vector>

#include "torch/place.h"

namespace lowtide::torch_ops {

using torch::headeronly::ScalarType;

// TORCH_BOX copies any other argument type bit by bit: a float parameter called with 0.1 receives
// garbage, an int32_t truncates, a string leaks.
template <class T>
inline constexpr bool kBoxable = std::is_same_v<T, Tensor> || std::is_same_v<T, double> ||
                                 std::is_same_v<T, int64_t> || std::is_same_v<T, bool>;
template <class T>
inline constexpr bool kBoxable<std::optional<T>> = kBoxable<T>;
template <class T>
inline constexpr bool kBoxable<std::vector<T>> = kBoxable<T>;

template <class F>
struct Signature;
template <class R, class... A>
struct Signature<R (*)(A...)> {
  static constexpr bool ok = (kBoxable<std::remove_cv_t<std::remove_reference_t<A>>> && ...);
};

#define LT_BOX(f)                                                                         \
  ([] {                                                                                   \
    static_assert(::lowtide::torch_ops::Signature<decltype(f)>::ok,                       \
                  "stable ABI ops take Tensor, double, int64_t, bool, optional, vector"); \
    return TORCH_BOX(f);                                                                  \
  }())

inline void check_here(const Tensor& t, ScalarType dtype, const char* name,
                       const char* dtype_name) {
  STD_TORCH_CHECK(is_here(t) && t.is_contiguous() && t.scalar_type() == dtype, "lowtide: ", name,
                  " must be a contiguous ", dtype_name, " ", kHere, " tensor");
}

inline float* f32(const Tensor& t, const char* name) {
  check_here(t, ScalarType::Float, name, "float32");
  return static_cast<float*>(data(t));
}
inline const float* const_f32(const Tensor& t, const char* name) {
  check_here(t, ScalarType::Float, name, "float32");
  return static_cast<const float*>(const_data(t));
}
inline uint8_t* u8(const Tensor& t, const char* name) {
  check_here(t, ScalarType::Byte, name, "uint8");
  return static_cast<uint8_t*>(data(t));
}
inline const uint8_t* const_u8(const Tensor& t, const char* name) {
  check_here(t, ScalarType::Byte, name, "uint8");
  return static_cast<const uint8_t*>(const_data(t));
}
inline const int32_t* const_i32(const Tensor& t, const char* name) {
  check_here(t, ScalarType::Int, name, "int32");
  return static_cast<const int32_t*>(const_data(t));
}

// Bits of an int of a schema as the unsigned number that it stands for.
inline uint64_t u64(int64_t x) { return static_cast<uint64_t>(x); }
inline uint32_t u32(int64_t x) { return static_cast<uint32_t>(x); }

}  // namespace lowtide::torch_ops
