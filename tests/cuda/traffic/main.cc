// SPDX-License-Identifier: Apache-2.0
// Runs every memory-bound kernel once on whole, aligned arrays and prints the bytes that it must
// move: "KERNEL BYTES" lines, summed over the configurations of a kernel. With LT_EMU_PROFILE the
// emulator writes what did move; check_traffic.py compares.
#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "curvature/probe_cuda.h"
#include "curvature/vectors_cuda.h"
#include "optim/apply_update_cuda.h"
#include "optim/channel_energy_cuda.h"
#include "optim/combine_cuda.h"
#include "optim/fused_step_cuda.h"
#include "quant/gemv_cuda.h"
#include "quant/group_codec_cuda.h"
#include "quant/group_map_cuda.h"
#include "quant/requant_cuda.h"
#include "random/stream_cuda.h"
#include "spsa/digest_cuda.h"
#include "spsa/perturb_cuda.h"
#include "spsa/replay_cuda.h"

namespace {

using namespace lowtide;

constexpr int64_t kN = 1 << 16;

template <class T>
T* filled(int64_t n, T value) {
  const std::vector<T> host(static_cast<size_t>(n), value);
  void* p = nullptr;
  cudaMalloc(&p, host.size() * sizeof(T));
  cudaMemcpy(p, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice);
  return static_cast<T*>(p);
}

bool failed = false;

void ran(const char* kernel, int64_t bytes, int error) {
  std::printf("%s %lld\n", kernel, static_cast<long long>(bytes));
  if (error != 0) std::printf("ERROR %d\n", error);
  failed = failed || error != 0;
}

void streams() {
  float* x = filled(kN, 0.5f);
  double* out = filled(1, 0.0);
  double* scratch = filled(random::cuda::dot_scratch(kN), 0.0);
  const random::Stream s{.seed = 1};
  ran("random::stream_words", 4 * kN,
      random::cuda::words(reinterpret_cast<uint32_t*>(x), kN, 0, s, nullptr));
  using random::Dist;
  struct Case {
    Dist dist;
    std::string sample, add;
  };
  const std::string rows = "random::stream_rows<";
  const Case cases[] = {
      {Dist::rademacher, "random::stream_rademacher<Sample>",
       "random::stream_rademacher<AddScaled>"},
      {Dist::gaussian, rows + "1, Sample>", rows + "1, AddScaled>"},
      {Dist::ih4, rows + "2, Sample>", rows + "2, AddScaled>"},
      {Dist::lut8, "random::stream_lut8<Sample>", "random::stream_lut8<AddScaled>"}};
  for (const auto& c : cases) {
    ran(c.sample.c_str(), 4 * kN, random::cuda::sample(x, kN, 0, s, c.dist, nullptr));
    ran(c.add.c_str(), 8 * kN, random::cuda::add_scaled(x, 0.1f, kN, 0, s, c.dist, nullptr));
    ran(("random::stream_dot<" + std::to_string(static_cast<int>(c.dist)) + ">").c_str(), 4 * kN,
        random::cuda::dot(out, x, kN, 0, s, c.dist, scratch, nullptr));
  }
}

void perturbations() {
  using random::Dist;
  using spsa::FloatType;
  float* w = filled(kN, 0.5f);
  uint16_t* out = filled(kN, uint16_t{0x3f00});
  const std::pair<Dist, const char*> cases[] = {
      {Dist::rademacher, "random::stream_rademacher<Perturb>"},
      {Dist::gaussian, "random::stream_rows<1, Perturb>"},
      {Dist::ih4, "random::stream_rows<2, Perturb>"},
      {Dist::lut8, "random::stream_lut8<Perturb>"}};
  for (const auto& [dist, kernel] : cases) {
    const auto f32 = FloatType::f32;
    ran(kernel, 8 * kN,
        spsa::cuda::perturb({{w, w, f32, f32, kN, 0, 0.1f}}, 1, 2, 3, dist, nullptr));
    ran(kernel, 6 * kN,
        spsa::cuda::perturb({{out, w, FloatType::bf16, f32, kN, 0, 0.1f}}, 1, 2, 3, dist, nullptr));
  }
}

void codecs() {
  float* x = filled(kN, 0.5f);
  uint16_t* h = filled(kN, uint16_t{0x3f00});
  uint8_t* codes = filled(kN, uint8_t{0});
  float* scale = filled(kN / 256, 0.01f);
  uint8_t* zero = filled(kN / 256, uint8_t{7});
  int64_t* counter = filled(1, int64_t{0});
  for (int bits : {8, 4}) {
    const quant::GroupShape shape{16, kN / 16, 256, bits};
    const quant::GroupMatrix q{codes, scale, bits == 4 ? zero : nullptr, shape};
    const int64_t packed = kN * bits / 8 + kN / 256 * (bits == 4 ? 5 : 4);
    const quant::QuantizeOptions options{.rounding = quant::Rounding::stochastic};
    using quant::FloatType;
    ran("quant::quantize_groups", 4 * kN + packed,
        quant::cuda::quantize_groups(x, FloatType::f32, q, options, counter, nullptr));
    ran("quant::quantize_groups", 2 * kN + packed,
        quant::cuda::quantize_groups(h, FloatType::bf16, q, options, counter, nullptr));
    const quant::ConstGroupMatrix in{codes, scale, q.zero, shape};
    ran("quant::dequantize_groups", 4 * kN + packed,
        quant::cuda::dequantize_groups(in, x, FloatType::f32, nullptr));
    ran("quant::dequantize_groups", 2 * kN + packed,
        quant::cuda::dequantize_groups(in, h, FloatType::bf16, nullptr));
    ran("quant::requant_add_sr", 4 * kN + packed + kN * bits / 8,
        quant::cuda::requant_add_sr(q, x, {.alpha = 1e-4}, counter, nullptr));
  }
  for (quant::LevelMap map : {quant::LevelMap::nf4, quant::LevelMap::dynamic8}) {
    const int bits = quant::map_bits(map);
    const int64_t bytes = 4 * kN + kN * bits / 8 + kN / 64;
    const quant::GroupMatrix levels{codes, scale, nullptr, {16, kN / 16, 256, bits}};
    ran(bits == 4 ? "quant::quantize_map<4>" : "quant::quantize_map<8>", bytes,
        quant::cuda::quantize_map(x, quant::FloatType::f32, map, levels,
                                  {.rounding = quant::Rounding::stochastic}, counter, nullptr));
    ran(bits == 4 ? "quant::dequantize_map<4>" : "quant::dequantize_map<8>", bytes,
        quant::cuda::dequantize_map({codes, scale, nullptr, levels.shape}, map, x,
                                    quant::FloatType::f32, nullptr));
  }
  float* y = filled(kN / 1024, 0.0f);
  ran("quant::gemv_rows", kN + kN / 64 + 4 * (kN / 1024) + 4 * 1024 * (kN / 1024 / 16),
      quant::cuda::gemv(y, {codes, scale, nullptr, {kN / 1024, 1024, 256, 8}},
                        quant::Coding::integer, x, nullptr));
  ran("quant::count_nonfinite", 4 * kN,
      quant::cuda::count_nonfinite(x, quant::FloatType::f32, kN, counter, nullptr));
}

void steps() {
  using namespace optim;
  void* p = filled(kN, 0.5f);
  void* g = filled(kN, 0.1f);
  int64_t* counter = filled(1, int64_t{0});
  StepTensor t;
  t.n = kN, t.p = p, t.g = g;
  t.m = filled(kN, 0.0f), t.v = filled(kN, 0.0f), t.w = filled(kN, 0.0f);
  const StepRule adam = make_adam_rule(1e-3, 1, 1e-8, 0.9, 0.999, 1, 1);
  const StepRule lion = make_lion_rule(1e-3, 0.9, 0.99, 1, 1);
  const StepRule diffgrad = make_diffgrad_rule(1e-3, 1, 1e-8, 0.9, 0.999, 1, 1);
  const auto step = [&](const char* kernel, int64_t bytes, const StepRule& rule) {
    ran(kernel, bytes, optim::cuda::fused_step({t}, rule, 1, 1, counter, nullptr));
  };
  step("optim::fused_step<FloatStates, false>", 28 * kN, adam);
  step("optim::fused_step<FloatStates, false>", 20 * kN, lion);
  step("optim::fused_step<FloatStates, false>", 12 * kN, make_sign_rule(1e-3, 1, 1));
  step("optim::fused_step<FloatStates, true>", 36 * kN, diffgrad);
  t.m_codes = filled(kN, uint8_t{127}), t.v_codes = filled(kN, uint8_t{0});
  t.m_absmax = filled(kN / 128, 0.0f), t.v_absmax = filled(kN / 128, 0.0f);
  t.w_codes = filled(kN, uint8_t{127}), t.w_absmax = filled(kN / 128, 0.0f);
  t.states = StateKind::dynamic8;
  step("optim::fused_step<Dynamic8States, true>", 18 * kN + 3 * kN / 32, diffgrad);
  step("optim::fused_step<Dynamic8States, false>", 16 * kN + kN / 16, adam);
  step("optim::fused_step<Dynamic8States, false>", 14 * kN + kN / 32, lion);
  t.states = StateKind::dynamic4;
  step("optim::fused_step<Dynamic4States, false>", 14 * kN + kN / 8, adam);
  step("optim::fused_step<Dynamic4States, true>", 15 * kN + 3 * kN / 16, diffgrad);
  t.states = StateKind::dynamic8;
  t.weight_store = WeightStore::bf16_stochastic, t.g_dtype = Dtype::bf16;
  step("optim::fused_step<Dynamic8States, false>", 10 * kN + kN / 16, adam);
  UpdateTensor u;
  u.n = kN, u.p = p, u.u = static_cast<const float*>(g);
  const UpdateRule update = make_update_rule(1, 1, 1);
  ran("optim::apply_update", 12 * kN, optim::cuda::apply_update({u}, update, 1, 1, nullptr));
  u.weight_store = WeightStore::bf16_stochastic;
  ran("optim::apply_update", 8 * kN, optim::cuda::apply_update({u}, update, 1, 1, nullptr));

  CombineMatrix c;
  const float one = 1.0f;
  c.rows = 64, c.cols = kN / 64, c.p = p, c.g = g, c.k = filled(1, one);
  ran("optim::combine", 12 * kN, optim::cuda::combine(c, update, 1, 1, nullptr));
  double* energy = filled(kN / 64, 0.0);
  for (Channels channels : {Channels::rows, Channels::columns})
    ran(channels == Channels::rows ? "optim::row_energy<float>" : "optim::column_energy<float>",
        4 * kN + 8 * (channels == Channels::rows ? 64 : kN / 64),
        optim::cuda::channel_energy(energy, {g, Dtype::f32, 64, kN / 64}, channels, nullptr,
                                    nullptr));
}

// Of float32 only: beside half the bytes, the schedule, which every warp reads from cache, shows.
void zeroth_order() {
  using namespace spsa;
  float* w = filled(kN, 0.5f);
  uint64_t* sum = filled(1, uint64_t{0});
  ran("spsa::digest_sum<4>", 4 * kN, spsa::cuda::digest(sum, w, 4, kN, 0, nullptr));
  ran("spsa::digest_sum<2>", 2 * kN, spsa::cuda::digest(sum, w, 2, kN, 0, nullptr));
  const Step* steps = filled(1, Step{{1, 2}, 0.5f, 0, 1});
  const Direction* directions = filled(1, Direction{{3, 4}, 1e-3f});
  ReplayTensor t;
  t.n = kN, t.w = w, t.threshold = HUGE_VALF, t.floor = -HUGE_VALF;
  const auto replay = [&](const char* kernel, int64_t bytes, random::Dist dist) {
    ran(kernel, bytes * kN, spsa::cuda::replay({t}, steps, 1, directions, dist, nullptr));
  };
  replay("spsa::replay_chunks<0, 0>", 8, random::Dist::rademacher);
  replay("spsa::replay_chunks<1, 0>", 8, random::Dist::gaussian);
}

void curvature_vectors() {
  using namespace curvature;
  const auto f32 = Dtype::f32, bf16 = Dtype::bf16;
  float* x = filled(kN, 0.5f);
  float* y = filled(kN, 0.5f);
  double* out = filled(2, 0.0);
  double* scratch = filled(kN / 2048, 0.0);
  ran("curvature::sign_dot", 4 * kN,
      curvature::cuda::sign_dot(out, {{x, f32, kN, 1}}, {}, scratch, nullptr));
  ran("curvature::sign_dot", 2 * kN,
      curvature::cuda::sign_dot(out, {{x, bf16, kN, 1}}, {}, scratch, nullptr));
  ran("curvature::sign_move<true>", 8 * kN,
      curvature::cuda::sign_axpy({{y, f32, kN, 1}}, 1, {}, nullptr));
  ran("curvature::sign_move<false>", 4 * kN,
      curvature::cuda::sign_fill({{y, f32, kN, 1}}, 1, {}, nullptr));
  ran("curvature::sign_fma", 12 * kN,
      curvature::cuda::sign_fma({{y, x, f32, kN, 1}}, {}, {}, nullptr));
  ran("curvature::dot", 8 * kN,
      curvature::cuda::dot(out, {{x, y, f32, f32, kN}}, scratch, nullptr));
  ran("curvature::axpby", 12 * kN, curvature::cuda::axpby({{y, x, f32, f32, kN}}, 1, 1, nullptr));
  ran("curvature::fd_finish<false>", 12 * kN,
      curvature::cuda::fd_finish(out, {y, x, nullptr, kN, 1}, scratch, nullptr));
}

}  // namespace

int main() {
  curvature_vectors();
  zeroth_order();
  streams();
  perturbations();
  codecs();
  steps();
  return failed ? 1 : 0;
}
