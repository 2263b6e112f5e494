// SPDX-License-Identifier: Apache-2.0
// Runs one seeded bug. Exit status 0: nothing noticed; 1: a wrong result or an error code of the
// runtime, said on stdout; anything else: the emulator or a sanitizer stopped the program. usage:
// cuda_seeded_<build> CASE
#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdio>
#include <functional>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "seeded/bugs.h"

namespace {

using seeded::Bug;
constexpr int kFloats = 1024;

struct Case {
  std::function<int()> run;
};

int Verdict(bool right) {
  std::puts(right ? "nothing noticed" : "wrong result");
  return right ? 0 : 1;
}

int ErrorVerdict(int error) {
  std::printf("%s\n",
              error != 0 ? cudaGetErrorString(static_cast<cudaError_t>(error)) : "nothing noticed");
  return error != 0 ? 1 : 0;
}

struct Arrays {
  float* x = nullptr;
  float* y = nullptr;
  std::vector<float> host;
  Arrays() : host(kFloats) {
    std::iota(host.begin(), host.end(), 1.0f);
    cudaMalloc(reinterpret_cast<void**>(&x), kFloats * sizeof(float));
    cudaMalloc(reinterpret_cast<void**>(&y), kFloats * sizeof(float));
    cudaMemcpy(x, host.data(), kFloats * sizeof(float), cudaMemcpyHostToDevice);
    cudaMemset(y, 0, kFloats * sizeof(float));
  }
  std::vector<float> result() const {
    std::vector<float> out(kFloats);
    cudaMemcpy(out.data(), y, kFloats * sizeof(float), cudaMemcpyDeviceToHost);
    return out;
  }
};

// Launches and compares element i < n with want(i).
Case Kernel(Bug bug, int n, std::function<float(const Arrays&, int)> want) {
  return {[=] {
    Arrays a;
    seeded::Launch(bug, a.x, a.y, kFloats);
    const std::vector<float> y = a.result();
    bool right = cudaGetLastError() == cudaSuccess;
    for (int i = 0; i < n; ++i) right = right && y[static_cast<size_t>(i)] == want(a, i);
    return Verdict(right);
  }};
}

float One(const Arrays&, int) { return 1.0f; }

float BlockSum(const Arrays& a, int block) {
  float sum = 0;  // integers below 2^24: every order gives the same
  for (int i = 0; i < 256; ++i) sum += a.host[static_cast<size_t>(256 * block + i)];
  return sum;
}

std::map<std::string, Case> Cases() {
  auto mirrored = [](const Arrays& a, int i) {
    return a.host[static_cast<size_t>(i / 256 * 256 + 255 - i % 256)];
  };
  auto partner = [](const Arrays&, int i) { return static_cast<float>(i ^ 1); };
  auto copied = [](const Arrays& a, int i) { return a.host[static_cast<size_t>(i)]; };
  std::map<std::string, Case> cases = {
      {"missing_sync", Kernel(Bug::missing_sync, kFloats, mirrored)},
      {"missing_sync_one_order", Kernel(Bug::missing_sync_one_order, kFloats,
                                        [](const Arrays& a, int i) {
                                          return i % 256 ? a.host[static_cast<size_t>(i - 1)]
                                                         : 0.0f;
                                        })},
      {"missing_second_sync",
       Kernel(Bug::missing_second_sync, 256,
              [](const Arrays&, int i) { return 2.0f * static_cast<float>(256 - i) + 1; })},
      {"out_of_bounds", Kernel(Bug::out_of_bounds, kFloats, copied)},
      {"divergent_barrier", Kernel(Bug::divergent_barrier, 256, One)},
      {"barrier_after_exit", Kernel(Bug::barrier_after_exit, 0, One)},
      {"bad_mask", Kernel(Bug::bad_mask, 16, One)},
      {"caller_not_in_mask", Kernel(Bug::caller_not_in_mask, 16, One)},
      {"shuffle_from_outside_the_mask", Kernel(Bug::shuffle_from_outside_the_mask, 16, One)},
      {"early_return_before_ballot",
       Kernel(Bug::early_return_before_ballot, 20, [](const Arrays&, int) { return 20.0f; })},
      {"misaligned",
       Kernel(Bug::misaligned, 64,
              [](const Arrays& a, int i) { return a.host[static_cast<size_t>(i + 1)]; })},
      {"uninitialised_shared", Kernel(Bug::uninitialised_shared, 32, One)},
      {"shared_overrun", Kernel(Bug::shared_overrun, 0, One)},
      {"shared_overrun_into_neighbour", Kernel(Bug::shared_overrun_into_neighbour, 0, One)},
      {"warp_exchange_without_sync", Kernel(Bug::warp_exchange_without_sync, 32, partner)},
      {"warp_exchange_without_second_sync",
       Kernel(Bug::warp_exchange_without_second_sync, 32,
              [](const Arrays&, int i) { return 2.0f * static_cast<float>(31 - i) + 1; })},
      {"lane_guard_dropped",
       Kernel(Bug::lane_guard_dropped, 256,
              [](const Arrays& a, int i) { return a.host[static_cast<size_t>(i / 32)]; })},
      {"trap_reached", Kernel(Bug::trap_reached, 32, One)},
      {"correct_warp_exchange", Kernel(Bug::correct_warp_exchange, 32, partner)},
      {"correct_reduction", Kernel(Bug::correct_reduction, 4, BlockSum)},
  };
  cases["vector_past_the_end"] = {[] {
    Arrays a;
    float* y = nullptr;
    cudaMalloc(reinterpret_cast<void**>(&y), 1021 * sizeof(float));
    seeded::Launch(Bug::vector_past_the_end, a.x, y, 1021);
    return Verdict(true);
  }};
  cases["blocks_exchange"] = {[] {
    Arrays a;
    seeded::Launch(Bug::blocks_exchange, a.x, a.y, 0);
    const std::vector<float> y = a.result();
    return Verdict(y[512] == 1 && y[513] == 1 && y[514] == 1 && y[515] == 1);
  }};
  cases["not_atomic"] = {[] {
    Arrays a;
    seeded::Launch(Bug::not_atomic, a.x, a.y, 0);
    unsigned count = 0;
    cudaMemcpy(&count, a.y, sizeof count, cudaMemcpyDeviceToHost);
    return Verdict(count == 64);
  }};
  cases["stale_pointer"] = {[] {
    Arrays a;
    cudaFree(a.x);
    seeded::Launch(Bug::stale_pointer, a.x, a.y, 0);
    return Verdict(true);
  }};
  cases["correct_repeated_launches"] = {[] {  // launches are ordered: no race between them
    Arrays a;
    for (int i = 0; i < 3; ++i) seeded::Launch(Bug::correct_reduction, a.x, a.y, 0);
    return Verdict(a.result()[3] == BlockSum(a, 3));
  }};
  // Faults of the host side.
  cases["host_too_many_threads"] = {[] {
    Arrays a;
    return ErrorVerdict(seeded::LaunchTooManyThreads(a.x, a.y));
  }};
  cases["host_reads_device_memory"] = {[] {
    Arrays a;
    const volatile float v = a.x[0];
    std::printf("%g\n", static_cast<double>(v));
    return Verdict(true);
  }};
  cases["host_pointer_in_kernel"] = {[] {
    Arrays a;
    seeded::Launch(Bug::stale_pointer, a.host.data(), a.y, 0);
    return Verdict(true);
  }};
  cases["host_wrong_copy_direction"] = {[] {
    Arrays a;
    return ErrorVerdict(cudaMemcpy(a.host.data(), a.x, 4, cudaMemcpyHostToDevice));
  }};
  cases["host_copy_past_the_end"] = {[] {
    Arrays a;
    std::vector<float> more(kFloats + 1);
    return ErrorVerdict(
        cudaMemcpy(more.data(), a.x, (kFloats + 1) * sizeof(float), cudaMemcpyDeviceToHost));
  }};
  cases["host_double_free"] = {[] {
    Arrays a;
    cudaFree(a.x);
    return ErrorVerdict(cudaFree(a.x));
  }};
  cases["host_dynamic_shared_without_opt_in"] = {[] {
    Arrays a;
    return ErrorVerdict(seeded::LaunchWithDynamicShared(a.y, 16 * 1024, 64 * 1024, false));
  }};
  cases["host_too_little_dynamic_shared"] = {[] {
    Arrays a;
    return ErrorVerdict(seeded::LaunchWithDynamicShared(a.y, 1024, 2048, false));
  }};
  cases["correct_dynamic_shared_with_opt_in"] = {[] {
    Arrays a;
    const int error = seeded::LaunchWithDynamicShared(a.y, 16 * 1024, 64 * 1024, true);
    return Verdict(error == 0 && a.result()[0] == 16 * 1024 - 1);
  }};
  return cases;
}

}  // namespace

int main(int argc, char** argv) {
  const auto cases = Cases();
  if (argc == 2) {
    const auto it = cases.find(argv[1]);
    if (it != cases.end()) return it->second.run();
  }
  for (const auto& [name, c] : cases) std::puts(name.c_str());
  return 2;
}
