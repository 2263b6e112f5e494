// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <stddef.h>

namespace seeded {

enum class Bug {
  missing_sync,
  missing_sync_one_order,
  missing_second_sync,
  out_of_bounds,
  vector_past_the_end,
  divergent_barrier,
  barrier_after_exit,
  bad_mask,
  caller_not_in_mask,
  shuffle_from_outside_the_mask,
  early_return_before_ballot,
  misaligned,
  uninitialised_shared,
  shared_overrun,
  shared_overrun_into_neighbour,
  warp_exchange_without_sync,
  warp_exchange_without_second_sync,
  lane_guard_dropped,
  blocks_exchange,
  not_atomic,
  stale_pointer,
  trap_reached,
  correct_warp_exchange,
  correct_reduction,
};

void Launch(Bug bug, const float* x, float* y, int n);
int LaunchTooManyThreads(const float* x, float* y);
int LaunchWithDynamicShared(float* y, int n, size_t bytes, bool opt_in);

}  // namespace seeded
