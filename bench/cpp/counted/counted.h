// SPDX-License-Identifier: Apache-2.0
// Kernels prepared once and run once between two calls that a profiler can see, so that their
// instructions can be counted without those of the preparation. See tools/instruction_counts.py.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "roofline.h"

namespace lowtide::counted {

// Prepares its data when called, and returns what is to be counted.
using Prepare = std::function<std::function<void()>()>;

inline std::map<std::string, Prepare>& registry() {
  static std::map<std::string, Prepare> all;
  return all;
}

struct Registered {
  Registered(const char* name, Prepare prepare) { registry()[name] = std::move(prepare); }
};

// Data that lives as long as the function that is returned.
template <class T>
std::shared_ptr<bench::Aligned<T>> buffer(int64_t n, T fill = T{}) {
  return std::make_shared<bench::Aligned<T>>(static_cast<size_t>(n), fill);
}
inline std::shared_ptr<bench::Aligned<float>> values(int64_t n, float scale = 1.0f) {
  return std::make_shared<bench::Aligned<float>>(bench::scattered(n, scale));
}

}  // namespace lowtide::counted
