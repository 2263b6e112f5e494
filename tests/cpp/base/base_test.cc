// SPDX-License-Identifier: Apache-2.0
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/fpenv.h"
#include "base/hd.h"
#include "base/reduce.h"
#include "testing.h"

namespace lowtide {
namespace {

TEST(Isa, ForcedOneIsTheOneThatRuns) {
  for (Isa isa : available_isas()) {
    testing::IsaGuard guard(isa);
    EXPECT_EQ(active_isa(), isa);
    EXPECT_EQ(parse_isa(isa_name(isa)), isa);
  }
}

TEST(Isa, UnknownAndUnavailableAreRefused) {
  EXPECT_THROW(parse_isa("sse9"), Error);
#if defined(__x86_64__)
  EXPECT_THROW(set_isa(Isa::neon), Error);
#else
  EXPECT_THROW(set_isa(Isa::avx2), Error);
#endif
}

TEST(Parallel, CoversEachIndexOnce) {
  for (int threads : {1, 2, 3, 7}) {
    set_num_threads(threads);
    for (int64_t n : {0, 1, 2, 100, 1001}) {
      std::vector<std::atomic<int>> hits(static_cast<size_t>(n));
      parallel_for(n, 3, [&](int64_t b, int64_t e) {
        for (int64_t i = b; i < e; ++i) hits[static_cast<size_t>(i)]++;
      });
      for (auto& h : hits) EXPECT_EQ(h.load(), 1);
    }
  }
  EXPECT_THROW(set_num_threads(0), Error);
}

TEST(Parallel, NestedAndConcurrentCallersFinish) {
  set_num_threads(3);
  std::atomic<int64_t> sum{0};
  auto body = [&] {
    for (int r = 0; r < 50; ++r)
      parallel_for(64, 1, [&](int64_t b, int64_t e) {
        parallel_for(e - b, 1, [&](int64_t x, int64_t y) { sum += y - x; });
      });
  };
  std::thread other(body);
  body();
  other.join();
  EXPECT_EQ(sum.load(), 2 * 50 * 64);
}

#if !defined(__SANITIZE_THREAD__)
TEST(Parallel, WorksInAForkedChild) {
  set_num_threads(3);
  auto run = [] {
    std::atomic<int64_t> sum{0};
    parallel_for(1000, 1, [&](int64_t b, int64_t e) { sum += e - b; });
    return sum.load();
  };
  ASSERT_EQ(run(), 1000);
  const pid_t pid = fork();
  if (pid == 0) {
    alarm(10);  // a deadlock ends the child with SIGALRM
    _exit(run() == 1000 ? 0 : 1);
  }
  int status = -1;
  waitpid(pid, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}
#endif

#if defined(__x86_64__)
// Out of line, so that the product is computed when and where it is asked for.
__attribute__((noinline)) float halve(volatile float* x) { return *x * 0.5f; }

TEST(FpEnv, FlushToZeroOfTheHostIsPinnedAndRestored) {
  const unsigned host = _mm_getcsr() | 0x8040;  // FTZ | DAZ
  volatile float tiny = 0x1p-140f;
  _mm_setcsr(host);
  float inside = 0;
  parallel_for(1, 1, [&](int64_t, int64_t) { inside = halve(&tiny); });
  const float outside = halve(&tiny);
  const unsigned after = _mm_getcsr();
  _mm_setcsr(0x1f80);
  EXPECT_EQ(after & ~0x3fu, host & ~0x3fu);
  EXPECT_EQ(inside, 0x1p-141f);
  EXPECT_EQ(outside, 0.0f);
}
#endif

TEST(Numeric, Bf16RoundsToNearestEvenAndKeepsNaN) {
  EXPECT_EQ(float_to_bf16(1.0f), 0x3f80);
  EXPECT_EQ(float_to_bf16(bits_float(0x3f808000u)), 0x3f80);  // tie to even
  EXPECT_EQ(float_to_bf16(bits_float(0x3f818000u)), 0x3f82);
  EXPECT_EQ(float_to_bf16(bits_float(0x7f800001u)) & 0x7fc0, 0x7fc0);
  EXPECT_EQ(float_to_bf16(3.4e38f), 0x7f80);
  EXPECT_EQ(bf16_to_float(0x8000), -0.0f);
}

TEST(Numeric, EveryHalfIsTheFloatItMeansAndComesBack) {
  for (uint32_t h = 0; h < 65536; ++h) {
    const int exponent = static_cast<int>(h >> 10 & 31), mantissa = static_cast<int>(h & 1023);
    const float x = half_to_float(static_cast<uint16_t>(h));
    if (exponent == 31 && mantissa != 0) {
      EXPECT_TRUE(std::isnan(x));
      EXPECT_EQ(float_to_half(x), h | 0x200u);
      continue;
    }
    const double size =
        exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    const double want = exponent == 31 ? HUGE_VAL : size;
    EXPECT_EQ(x, h >> 15 ? -want : want) << h;
    EXPECT_EQ(float_to_half(x), h);
  }
}

TEST(Numeric, HalfRoundsToNearestEven) {
  for (uint32_t h = 0; h < 0x7bff; ++h) {  // midpoints of neighbours, and the floats beside them
    const float lo = half_to_float(static_cast<uint16_t>(h));
    const float hi = half_to_float(static_cast<uint16_t>(h + 1));
    const float middle = (lo + hi) * 0.5f;
    EXPECT_EQ(float_to_half(middle), h + (h & 1));
    EXPECT_EQ(float_to_half(std::nextafter(middle, 0.0f)), h);
    EXPECT_EQ(float_to_half(std::nextafter(-middle, -1e9f)), (h + 1) | 0x8000u);
  }
  EXPECT_EQ(float_to_half(65519.996f), 0x7bff);
  EXPECT_EQ(float_to_half(65520.0f), 0x7c00);
  EXPECT_EQ(float_to_half(-3e38f), 0xfc00);
  EXPECT_EQ(float_to_half(0x1p-149f), 0);
}

TEST(Numeric, HalvesStayThemselvesUnderStochasticRounding) {
  for (uint32_t h = 0; h < 65536; ++h) {
    const float x = half_to_float(static_cast<uint16_t>(h));
    for (uint32_t r16 : {0u, 1u, 40000u, 65535u})
      EXPECT_EQ(float_to_half_sr(x, r16), float_to_half(x)) << h << " " << r16;
  }
}

// All 65536 draws: the share that goes up is the fraction, to the resolution of the noise.
TEST(Numeric, HalfStochasticRoundingIsUnbiased) {
  for (float x : {1.0f + 0x1p-10f * 0.3125f, -3.1415927f, 65504.0f - 9.5f, 0x1.234567p-13f,
                  -0x1.234567p-16f, 0x1.8p-25f, 0x1.0p-30f, 0x1.fffffep-15f}) {
    double sum = 0;
    for (uint32_t r16 = 0; r16 < 65536; ++r16) sum += half_to_float(float_to_half_sr(x, r16));
    const double spacing = std::abs(x) < 0x1p-14f ? 0x1p-24 : std::abs(x) * 0x1p-10;
    EXPECT_NEAR(sum / 65536, x, spacing * 0x1p-13) << x;
  }
  EXPECT_EQ(float_to_half_sr(65536.0f, 0), 0x7c00);
  EXPECT_EQ(float_to_half_sr(-3e38f, 65535), 0xfc00);
  EXPECT_EQ(float_to_half_sr(65519.0f, 0), 0x7bff);
  EXPECT_EQ(float_to_half_sr(65519.0f, 65535), 0x7c00);
}

TEST(Reduce, TreeSumIsIndependentOfThreads) {
  uint64_t first = 0;
  for (int threads : {1, 2, 3}) {
    set_num_threads(threads);
    const double s =
        reduce_blocks(1001, [](int64_t b) { return 1.0 / (1.0 + static_cast<double>(b)); });
    const uint64_t d = testing::digest(&s, sizeof s);
    if (threads == 1) first = d;
    EXPECT_EQ(d, first);
    EXPECT_NEAR(s, 7.486469860, 1e-8);
  }
}

}  // namespace
}  // namespace lowtide
