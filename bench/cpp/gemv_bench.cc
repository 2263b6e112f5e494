// SPDX-License-Identifier: Apache-2.0
#include "quant/gemv.h"

#include <algorithm>
#include <cstring>

#include "quant/group_map.h"
#include "roofline.h"

namespace lowtide {
namespace {

constexpr int64_t kCols = 4096;

// range(0): weights. Rows of 4096, groups of 256.
template <int bits, quant::Coding coding>
void gemv(benchmark::State& state) {
  const quant::GroupShape s{state.range(0) / kCols, kCols, 256, bits};
  bench::Aligned<float> w(static_cast<size_t>(state.range(0))), x(kCols);
  for (size_t i = 0; i < w.size(); ++i)
    w[i] = static_cast<float>(i * 2654435761u % 4001) / 2000.0f - 1.0f;
  std::copy(w.begin() + 77, w.begin() + 77 + kCols, x.begin());
  bench::Aligned<uint8_t> codes(static_cast<size_t>(s.rows * row_bytes(s)));
  bench::Aligned<uint8_t> zero(static_cast<size_t>(s.rows * groups_per_row(s)));
  bench::Aligned<float> scale(zero.size()), y(static_cast<size_t>(s.rows));
  const bool nf4 = coding == quant::Coding::nf4;
  uint8_t* const zeros = nf4 ? nullptr : zero.data();
  if (nf4)
    quant::quantize_map(w.data(), quant::FloatType::f32, quant::LevelMap::nf4,
                        {codes.data(), scale.data(), nullptr, s}, {});
  else
    quant::quantize_groups(w.data(), quant::FloatType::f32, {codes.data(), scale.data(), zeros, s},
                           {});
  for (auto _ : state) {
    quant::gemv(y.data(), {codes.data(), scale.data(), zeros, s}, coding, x.data());
    benchmark::ClobberMemory();
  }
  const quant::GroupShape few{std::min<int64_t>(8, s.rows), kCols, 256, bits};
  std::vector<float> want(static_cast<size_t>(few.rows));
  const Isa isa = active_isa();
  set_isa(Isa::scalar);
  quant::gemv(want.data(), {codes.data(), scale.data(), zeros, few}, coding, x.data());
  set_isa(isa);
  if (std::memcmp(want.data(), y.data(), want.size() * 4) != 0) state.SkipWithError("wrong bits");
  const auto bytes = static_cast<double>(codes.size() + 5 * scale.size() + 4 * y.size());
  bench::report(state, bytes, bench::memcpy_bytes_per_second(static_cast<int64_t>(bytes / 2)),
                state.range(0));
}

const int kRegistered = [] {
  const std::vector<int64_t> sizes = {1 << 20, 1 << 24, 1 << 26};
  bench::register_per_isa("gemv_int8", gemv<8, quant::Coding::integer>, sizes);
  bench::register_per_isa("gemv_int4", gemv<4, quant::Coding::integer>, sizes);
  bench::register_per_isa("gemv_nf4", gemv<4, quant::Coding::nf4>, sizes);
  return 0;
}();

}  // namespace
}  // namespace lowtide
