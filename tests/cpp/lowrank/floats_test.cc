// SPDX-License-Identifier: Apache-2.0
#include "lowrank/floats.h"

#include <cmath>
#include <limits>
#include <thread>

#include "testing.h"

namespace lowtide::lowrank {
namespace {

TEST(Floats, MemoryOfTheSameSizeComesBack) {
  const size_t bytes = 300'000;
  void* p = take_buffer(bytes);
  give_buffer(p, bytes);
  EXPECT_EQ(take_buffer(bytes - 10), p);
  void* q = take_buffer(bytes);
  EXPECT_NE(p, q);
  give_buffer(p, bytes);
  give_buffer(q, bytes);
}

// The sanitizers see leaks, double frees and writes beyond the end.
TEST(Floats, AnyOrderAndAnySize) {
  std::vector<Floats> all;
  for (size_t round = 0; round < 3; ++round)
    for (size_t n : {size_t{0}, size_t{1}, size_t{16'383}, size_t{16'384}, size_t{50'000},
                     kSpareBytes / 4, kSpareBytes / 4 + 1}) {
      all.emplace_back(n);
      if (n > 0) all.back()[n - 1] = 1.0f;
      if (all.size() % 3 == 0) all.erase(all.begin());
    }
  std::thread([moved = std::move(all)]() mutable { moved.clear(); }).join();
}

TEST(Floats, LargestBitsOrderLikeMagnitudes) {
  const float inf = std::numeric_limits<float>::infinity();
  const float some[] = {0.0f, -3.0f, 2.0f};
  EXPECT_EQ(largest_bits(some, 3), static_cast<int32_t>(float_bits(3.0f)));
  EXPECT_EQ(largest_bits(some, 0), 0);
  const float bad[] = {1.0f, -inf}, worse[] = {inf, -std::nanf("")};
  EXPECT_EQ(largest_bits(bad, 2), kInfinityBits);
  EXPECT_GT(largest_bits(worse, 2), kInfinityBits);
}

}  // namespace
}  // namespace lowtide::lowrank
