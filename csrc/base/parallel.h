// SPDX-License-Identifier: Apache-2.0
// Threads are injected: torch's pool inside torch, the own fork-safe pool otherwise. Kernels cut
// work by constants (blocks of fixed size), never by the number of threads: parallel_for only
// decides who runs a block, so results do not depend on it.
#pragma once
#include <cstdint>
#include <type_traits>

#include "base/fpenv.h"

namespace lowtide {

using RangeFn = void (*)(int64_t begin, int64_t end, void* ctx);
using ParallelFor = void (*)(int64_t begin, int64_t end, int64_t grain, RangeFn fn, void* ctx);

// nullptr restores the own pool.
void set_parallel_for(ParallelFor impl);
ParallelFor parallel_for_impl();

// Own pool only: threads for the next region, >= 1. Default: LOWTIDE_NUM_THREADS or the processors
// this process may run on.
void set_num_threads(int n);
int num_threads();

// f(begin, end) over disjoint ranges covering [0, n); ranges hold at least `grain` items. `f` must
// not throw.
template <class F>
void parallel_for(int64_t n, int64_t grain, const F& f) {
  if (n <= 0) return;
  if (n <= grain) {
    PinnedFpEnv pin;
    f(int64_t{0}, n);
    return;
  }
  parallel_for_impl()(
      0, n, grain,
      [](int64_t begin, int64_t end, void* ctx) {
        PinnedFpEnv pin;
        (*static_cast<const F*>(ctx))(begin, end);
      },
      const_cast<void*>(static_cast<const void*>(&f)));
}

}  // namespace lowtide
