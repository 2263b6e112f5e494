// SPDX-License-Identifier: Apache-2.0
// One list of tensors of both types on the host and on the device, for the tests of the curvature
// kernels.
#pragma once
#include <deque>

#include "base/dtype.h"
#include "base/hd.h"
#include "device.h"
#include "testing.h"

namespace lowtide::testing {

// As raw 16-bit words, two an element in float32; `skew` elements off the device's alignment.
struct Both {
  Dtype dtype;
  int64_t n;
  std::vector<uint16_t> host;
  DeviceArray<uint16_t> device;

  Both(Dtype dtype, int64_t n, uint64_t seed, size_t skew)
      : dtype(dtype),
        n(n),
        host(words(dtype, noise(n, seed))),
        device(host, dtype == Dtype::f32 ? 2 * skew : skew) {}

  static std::vector<uint16_t> words(Dtype dtype, const std::vector<float>& values) {
    std::vector<uint16_t> w;
    for (float v : values) {
      w.push_back(dtype == Dtype::f32 ? static_cast<uint16_t>(float_bits(v)) : float_to_bf16(v));
      if (dtype == Dtype::f32) w.push_back(static_cast<uint16_t>(float_bits(v) >> 16));
    }
    return w;
  }
};

// More tensors than a launch takes, most of them short; types and alignments in turn.
class Lists {
 public:
  Lists(uint64_t seed, bool mixed) {
    std::vector<int64_t> ns = sizes({0, 1, 31, 32, 33, 2047, 2049, 4097}, {8192, 20001});
    for (int64_t n = 0; n < 36; ++n) ns.push_back(n);
    for (size_t t = 0; t < ns.size(); ++t)
      tensors_.emplace_back(mixed && (t + seed) % 3 == 0 ? Dtype::bf16 : Dtype::f32, ns[t],
                            seed * 100 + t, (t + seed) % 4);
  }
  std::deque<Both>& all() { return tensors_; }
  size_t size() const { return tensors_.size(); }
  void same(const char* what) {
    for (size_t t = 0; t < tensors_.size(); ++t)
      EXPECT_TRUE(SameBits(tensors_[t].device.host(), tensors_[t].host))
          << what << " of tensor " << t << " with " << tensors_[t].n << " elements";
  }

 private:
  std::deque<Both> tensors_;
};

}  // namespace lowtide::testing
