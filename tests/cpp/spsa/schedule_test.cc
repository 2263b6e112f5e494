// SPDX-License-Identifier: Apache-2.0
#include "spsa/schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "base/error.h"
#include "spsa/schedules.h"

namespace lowtide::spsa {
namespace {

using ::lowtide::testing::mixed_run;
using ::lowtide::testing::Plan;

TEST(Schedule, KeysAreThoseOfTheAddresses) {
  const Plan run = mixed_run();
  const Steps s = resolve(run.schedule());
  ASSERT_EQ(s.steps.size(), 5u);  // one of six changes nothing
  EXPECT_EQ(s.directions.size(), run.coeffs.size());
  const random::Key round = random::derive_key(77, 9, 0), old = random::derive_key(77, 6, 0);
  EXPECT_EQ(s.steps[3].round.k0, round.k0);
  EXPECT_EQ(s.steps[3].end - s.steps[3].begin, 19);
  EXPECT_EQ(s.directions.back().key.k1, old.k1);
}

TEST(Schedule, WhatCannotBeIsRefused) {
  const auto refused = [](auto&& change, const char* word) {
    Plan run = mixed_run();
    change(run);
    try {
      resolve(run.schedule());
      ADD_FAILURE() << "accepted: " << word;
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(word), std::string::npos) << e.what();
    }
  };
  refused([](Plan& r) { r.first[0] = 1; }, "first");
  refused([](Plan& r) { r.first.back() += 1; }, "first");
  refused([](Plan& r) { r.first[1] = 5; }, "descend");
  refused([](Plan& r) { r.decays[0] = NAN; }, "decays");
  refused([](Plan& r) { r.coeffs[1] = INFINITY; }, "coeffs");
  refused([](Plan& r) { r.round_steps[0] = -1; }, "round_steps");
  refused([](Plan& r) { r.dir_steps[2] = -1; }, "dir_steps");
  refused([](Plan& r) { r.dir_slots[2] = int64_t{1} << 32; }, "dir_slots");
}

}  // namespace
}  // namespace lowtide::spsa
