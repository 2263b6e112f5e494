// SPDX-License-Identifier: Apache-2.0
// Codes are read and written once: the limit is a copy of as many bytes. What is lost to it is the
// word that each code's rounding draws.
#include "spsa/replay_codes.h"

#include "roofline.h"
#include "schedule_arrays.h"

namespace lowtide {
namespace {

template <int kBits, int kSteps, int kDirections>
void replay_codes(benchmark::State& state) {
  const int64_t n = state.range(0);
  const bench::ScheduleArrays run(kSteps, kDirections);
  std::vector<uint8_t> codes(static_cast<size_t>(n * kBits / 8), kBits == 8 ? 128 : 0x88);
  std::vector<float> scale(static_cast<size_t>(n / 256), 1e-4f);
  const auto tensor = [&](uint8_t* p, int64_t rows) {
    spsa::CodesTensor t;
    t.w = {p, scale.data(), nullptr, {rows, 1024, 256, kBits}};
    return t;
  };
  const auto dist = random::Dist::rademacher;
  for (auto _ : state) {
    spsa::replay_codes({tensor(codes.data(), n / 1024)}, run.schedule(), dist);
    benchmark::ClobberMemory();
  }
  std::vector<uint8_t> got(4096 * kBits / 8, kBits == 8 ? 128 : 0x88), want = got;
  spsa::replay_codes({tensor(got.data(), 4)}, run.schedule(), dist);
  const Isa isa = active_isa();
  set_isa(Isa::scalar);
  spsa::replay_codes({tensor(want.data(), 4)}, run.schedule(), dist);
  set_isa(isa);
  if (got != want) state.SkipWithError("wrong bits");
  bench::report(state, 2.0 * static_cast<double>(codes.size()),
                bench::memcpy_bytes_per_second(static_cast<int64_t>(codes.size())), n);
}

const int kRegistered = [] {
  const std::vector<int64_t> sizes = {1 << 14, 1 << 22};
  bench::register_per_isa("int8/1x1", replay_codes<8, 1, 1>, sizes);
  bench::register_per_isa("int8/1x8", replay_codes<8, 1, 8>, sizes);
  bench::register_per_isa("int8/64x1", replay_codes<8, 64, 1>, sizes);
  bench::register_per_isa("int4/1x1", replay_codes<4, 1, 1>, sizes);
  bench::register_per_isa("int4/1x8", replay_codes<4, 1, 8>, sizes);
  return 0;
}();

}  // namespace
}  // namespace lowtide
