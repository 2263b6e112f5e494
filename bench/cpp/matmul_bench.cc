// SPDX-License-Identifier: Apache-2.0
// Products of the shapes that training meets, against the machine's own multiply-add peak, measured
// on registers with the same threads: `roofline` is the fraction reached, `items` are
// multiply-adds. Each bench verifies a corner of its result against the scalar path after timing.
#include "quant/matmul.h"

#include "fma_peak.h"
#include "roofline.h"

namespace lowtide {
namespace {

using quant::Operand;
using quant::Store;

struct Shape {
  const char* name;
  int64_t m, n, k;
  bool ta, tb;
  Store a, b;
};

// An operand of value-independent cost; codes and scales are whatever the bytes say.
struct Data {
  std::vector<uint8_t> bytes;
  std::vector<float> scale;
  Operand op;
  Data(Store store, int64_t rows, int64_t cols) {
    const int bits = quant::store_bits(store);
    const quant::GroupShape g{rows, cols, 256, bits};
    op = {store, nullptr, rows, cols, cols, nullptr, nullptr, 256};
    if (store == Store::f32 || store == Store::bf16) {
      bytes.resize(static_cast<size_t>(rows * cols) * (store == Store::f32 ? 4 : 2));
      for (int64_t i = 0; i < rows * cols; ++i) {
        const float v = static_cast<float>((i * 2654435761u >> 7) % 2048) / 1024.0f - 1.0f;
        const uint16_t h = float_to_bf16(v);
        if (store == Store::f32)
          std::memcpy(&bytes[static_cast<size_t>(i) * 4], &v, 4);
        else
          std::memcpy(&bytes[static_cast<size_t>(i) * 2], &h, 2);
      }
    } else {
      op.stride = quant::row_bytes(g);
      bytes.resize(static_cast<size_t>(rows * op.stride));
      for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i * 31 >> 2);
      scale.assign(static_cast<size_t>(rows * quant::groups_per_row(g)), 0.01f);
      op.scale = scale.data();
    }
    op.data = bytes.data();
  }
};

void product(benchmark::State& state, const Shape& s) {
  const Data a(s.a, s.ta ? s.k : s.m, s.ta ? s.m : s.k), b(s.b, s.tb ? s.n : s.k, s.tb ? s.k : s.n);
  std::vector<float> c(static_cast<size_t>(s.m * s.n));
  for (auto _ : state) {
    quant::matmul(c.data(), a.op, s.ta, b.op, s.tb);
    benchmark::ClobberMemory();
  }
  for (int64_t i = 0; i < std::min<int64_t>(s.m, 20); ++i)
    for (int64_t j = 0; j < std::min<int64_t>(s.n, 20); ++j)
      if (quant::matmul_chain(0, a.op, s.ta, b.op, s.tb, i, j, 0, s.k) !=
          c[static_cast<size_t>(i * s.n + j)])
        state.SkipWithError("wrong bits");
  const double work = static_cast<double>(s.m * s.n * s.k);
  const double total = work * static_cast<double>(state.iterations());
  state.counters["GFLOP/s"] = benchmark::Counter(2e-9 * total, benchmark::Counter::kIsRate);
  state.counters["roofline"] =
      benchmark::Counter(total / bench::fma_peak(), benchmark::Counter::kIsRate);
  state.SetLabel(std::string(isa_name(active_isa())) + ", " + std::to_string(num_threads()) +
                 " threads");
}

const int kRegistered = [] {
  static const Shape kShapes[] = {
      {"project_right_r128", 768, 128, 2048, false, true, Store::f32, Store::f32},
      {"project_right_r128_int4", 768, 128, 2048, false, true, Store::f32, Store::int4},
      {"project_left_r128", 128, 2048, 768, false, false, Store::f32, Store::f32},
      {"project_left_r128_int4", 128, 2048, 768, false, false, Store::int4, Store::f32},
      {"back_right_r128", 768, 2048, 128, false, false, Store::f32, Store::f32},
      {"back_right_r128_int4", 768, 2048, 128, false, false, Store::f32, Store::int4},
      {"linear", 512, 1536, 576, false, true, Store::f32, Store::f32},
      {"linear_int8", 512, 1536, 576, false, true, Store::f32, Store::int8},
      {"linear_dx_int8", 512, 576, 1536, false, false, Store::f32, Store::int8},
      {"linear_dw", 1536, 576, 512, true, false, Store::f32, Store::f32},
      {"sketch_136", 136, 768, 2048, false, true, Store::f32, Store::f32},
      {"gemv", 1, 1536, 576, false, true, Store::f32, Store::f32},
      {"gemv_int8", 1, 4096, 4096, false, true, Store::f32, Store::int8},
      {"gemv_int4", 1, 4096, 4096, false, true, Store::f32, Store::int4},
      {"rank4", 768, 4, 2048, false, true, Store::f32, Store::f32},
      {"square", 1024, 1024, 1024, false, false, Store::f32, Store::f32},
  };
  for (const Shape& s : kShapes)
    for (Isa isa : available_isas()) {
      if (isa == Isa::scalar || isa == Isa::baseline) continue;  // exact, slow, not a choice
      benchmark::RegisterBenchmark((std::string(s.name) + "/" + isa_name(isa)).c_str(),
                                   [isa, &s](benchmark::State& state) {
                                     set_isa(isa);
                                     product(state, s);
                                   })
          ->Unit(benchmark::kMicrosecond)
          ->UseRealTime();
    }
  return 0;
}();

}  // namespace
}  // namespace lowtide
