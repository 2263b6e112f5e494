// SPDX-License-Identifier: Apache-2.0
// 5.02 bytes an element either way (4 read and 1 written, or the reverse; the limit counts no fetch
// for ownership). Each bench verifies its output after timing.
#include "quant/dynamic_map.h"

#include "roofline.h"

namespace lowtide {
namespace {

using namespace quant;

struct Buffers {
  std::vector<float> x, absmax;
  std::vector<uint8_t> codes;
  explicit Buffers(int64_t n)
      : x(static_cast<size_t>(n)),
        absmax(static_cast<size_t>(dynamic_blocks(n))),
        codes(static_cast<size_t>(n)) {
    uint32_t s = 1;
    for (auto& v : x) {
      s = s * 1664525u + 1013904223u;
      v = static_cast<float>(static_cast<int32_t>(s)) * 0x1p-31f * ((s & 256) ? 1e-3f : 1.0f);
    }
  }
};

// The first elements again, on the scalar kernel.
template <class F>
bool scalar_agrees(const Buffers& got, const F& kernel) {
  const Isa isa = active_isa();
  const auto n = static_cast<int64_t>(std::min<size_t>(got.x.size(), 5120));
  Buffers want(n);
  set_isa(Isa::scalar);
  kernel(want, n);
  set_isa(isa);
  return std::memcmp(got.codes.data(), want.codes.data(), static_cast<size_t>(n)) == 0 &&
         std::memcmp(got.x.data(), want.x.data(), static_cast<size_t>(n) * 4) == 0;
}

void run(benchmark::State& state, bool decode) {
  const int64_t n = state.range(0);
  Buffers b(n);
  auto kernel = [decode](Buffers& at, int64_t count) {
    quantize_dynamic(at.codes.data(), at.absmax.data(), at.x.data(), count, true);
    if (decode) dequantize_dynamic(at.x.data(), at.codes.data(), at.absmax.data(), count, true);
  };
  kernel(b, n);
  for (auto _ : state) {
    if (decode)
      dequantize_dynamic(b.x.data(), b.codes.data(), b.absmax.data(), n, true);
    else
      quantize_dynamic(b.codes.data(), b.absmax.data(), b.x.data(), n, true);
    benchmark::ClobberMemory();
  }
  if (!scalar_agrees(b, kernel)) state.SkipWithError("wrong bits");
  const double bytes = (5.0 + 4.0 / kDynamicBlock) * static_cast<double>(n);
  bench::report(state, bytes, bench::memcpy_bytes_per_second(5 * n / 2), n);
}

const int kRegistered = [] {
  const std::vector<int64_t> sizes = {1 << 14, 1 << 20, 1 << 25};
  bench::register_per_isa(
      "quantize_dynamic", [](auto& s) { run(s, false); }, sizes);
  bench::register_per_isa(
      "dequantize_dynamic", [](auto& s) { run(s, true); }, sizes);
  return 0;
}();

}  // namespace
}  // namespace lowtide
