// SPDX-License-Identifier: Apache-2.0
// A persistent pool: the caller takes part, workers spin briefly and then sleep on a futex. After
// fork() the child starts with a fresh pool, because threads do not survive the fork.
#include "base/parallel.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <string>
#include <thread>

#include "base/error.h"

namespace lowtide {
namespace {

constexpr int kSpins = 4000;  // ~10 us: shorter made back-to-back regions 20x dearer

void cpu_relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int default_threads() {
  if (const char* env = std::getenv("LOWTIDE_NUM_THREADS")) {
    const int n = std::atoi(env);
    if (n >= 1) return n;
  }
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

class Pool {
 public:
  static Pool& get() {
    static std::once_flag once;
    std::call_once(once, [] {
      instance() = new Pool;
      // The parent's workers do not exist in the child: leak its pool and start afresh.
      pthread_atfork(nullptr, nullptr, [] {
        const int n = instance()->threads();
        instance() = new Pool;
        instance()->set_threads(n);
      });
    });
    return *instance();
  }

  void set_threads(int n) { want_.store(n, std::memory_order_relaxed); }
  int threads() const { return want_.load(std::memory_order_relaxed); }

  void run(int64_t begin, int64_t end, int64_t grain, RangeFn fn, void* ctx) {
    const int64_t n = end - begin;
    if (n <= 0) return;
    const int64_t chunks = (n + std::max<int64_t>(grain, 1) - 1) / std::max<int64_t>(grain, 1);
    const int nt = static_cast<int>(std::min<int64_t>(threads(), chunks));
    // Nested and concurrent callers run inline: correct, and never a deadlock.
    if (nt <= 1 || busy_.exchange(true, std::memory_order_acquire)) {
      fn(begin, end, ctx);
      return;
    }
    while (spawned_ < nt - 1) {
      const int id = ++spawned_;
      const uint32_t seen = generation_.load();
      std::thread([this, id, seen] { work(id, seen); }).detach();
    }
    job_ = {begin, end, (n + nt - 1) / nt, fn, ctx, nt};
    left_.store(spawned_, std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    fn(begin, std::min(end, begin + job_.step), ctx);
    for (int s = 0;; ++s) {
      const int left = left_.load(std::memory_order_acquire);
      if (left == 0) break;
      if (s < kSpins)
        cpu_relax();
      else
        left_.wait(left);
    }
    busy_.store(false, std::memory_order_release);
  }

 private:
  struct Job {
    int64_t begin, end, step;
    RangeFn fn;
    void* ctx;
    int threads;
  };

  static Pool*& instance() {
    static Pool* pool = nullptr;
    return pool;
  }

  void work(int id, uint32_t seen) {
    for (;;) {
      uint32_t now = generation_.load(std::memory_order_acquire);
      for (int s = 0; now == seen; ++s) {
        if (s < kSpins)
          cpu_relax();
        else
          generation_.wait(seen);
        now = generation_.load(std::memory_order_acquire);
      }
      seen = now;
      if (id < job_.threads) {
        const int64_t lo = job_.begin + id * job_.step;
        const int64_t hi = std::min(job_.end, lo + job_.step);
        if (lo < hi) job_.fn(lo, hi, job_.ctx);
      }
      if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) left_.notify_all();
    }
  }

  std::atomic<uint32_t> generation_{0};
  std::atomic<int> left_{0};
  std::atomic<bool> busy_{false};
  std::atomic<int> want_{default_threads()};
  int spawned_ = 0;
  Job job_{};
};

void pool_parallel_for(int64_t begin, int64_t end, int64_t grain, RangeFn fn, void* ctx) {
  Pool::get().run(begin, end, grain, fn, ctx);
}

std::atomic<ParallelFor> g_impl{pool_parallel_for};

}  // namespace

void set_parallel_for(ParallelFor impl) {
  g_impl.store(impl == nullptr ? pool_parallel_for : impl, std::memory_order_relaxed);
}

ParallelFor parallel_for_impl() { return g_impl.load(std::memory_order_relaxed); }

void set_num_threads(int n) {
  if (n < 1) throw Error(ErrorKind::value, "num_threads must be >= 1, got " + std::to_string(n));
  Pool::get().set_threads(n);
}

int num_threads() { return Pool::get().threads(); }

}  // namespace lowtide
