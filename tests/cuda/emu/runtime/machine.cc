// SPDX-License-Identifier: Apache-2.0
#include "machine.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <vector>

#include "memory.h"
#include "profile.h"
#include "sanitizers.h"

namespace lowtide::emu {

Machine machine;

namespace {

constexpr unsigned kMaxThreads = 1024;

Order thread_order = Order::kForward;
uint64_t order_seed = 1;

Thread threads[kMaxThreads];
// Two sets of fibers, used by alternate blocks: the race detector then has no accidental order
// between neighbouring blocks of a launch, which CUDA does not order either.
Fiber* fibers[2][kMaxThreads];

char launch_begin_token, launch_end_token;

std::vector<const Kernel*>& Registry() {
  static std::vector<const Kernel*> kernels;
  return kernels;
}

uint64_t NextRandom(uint64_t& state) {  // splitmix64
  uint64_t z = (state += 0x9E3779B97F4A7C15ull);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

void Shuffle(std::vector<unsigned>& order, uint64_t& state) {
  for (size_t i = order.size(); i > 1; --i) {
    std::swap(order[i - 1], order[NextRandom(state) % i]);
  }
}

// k-th block to run: a permutation of [0, blocks) that needs no table.
uint64_t BlockAt(uint64_t k, uint64_t blocks) {
  if (thread_order == Order::kForward) return k;
  if (thread_order == Order::kReverse) return blocks - 1 - k;
  uint64_t state = order_seed;
  const uint64_t offset = NextRandom(state) % blocks;
  uint64_t stride = NextRandom(state) % blocks | 1;
  while (std::gcd(stride, blocks) != 1) ++stride;
  return static_cast<uint64_t>((static_cast<unsigned __int128>(k) * stride + offset) % blocks);
}

void FiberBody() {  // runs one CUDA thread after another, for ever
  for (;;) {
    HappensAfter(&launch_begin_token);
    machine.kernel->run(machine.args);
    HappensBefore(&launch_end_token);
    machine.current->done = true;
    --machine.live;
    Fiber::Yield();
  }
}

void ReleaseBarrier() {  // nobody can run: a complete block barrier, or an error
  const Thread* waiting = nullptr;
  uint64_t votes = 0;
  for (unsigned i = 0; i < machine.block_threads; ++i) {
    const Thread& t = machine.threads[i];
    if (t.done) continue;
    if (t.wait == Wait::kWarp)
      Fail("warp intrinsic: lanes named in the mask never arrive", t.site, &t);
    waiting = &t;
  }
  for (unsigned i = 0; i < machine.block_threads; ++i) {
    const Thread& t = machine.threads[i];
    if (t.done)
      Fail("__syncthreads is not reached by a thread that has exited", waiting->site, waiting);
    if (t.site != waiting->site) Fail("threads wait at different __syncthreads", t.site, &t);
    votes += t.predicate;
  }
  for (unsigned i = 0; i < machine.block_threads; ++i) {
    machine.threads[i].wait = Wait::kNone;
    machine.threads[i].result = votes;
  }
}

void RunBlock(uint64_t seed) {
  std::vector<unsigned> order(machine.block_threads);
  std::iota(order.begin(), order.end(), 0u);
  if (thread_order == Order::kReverse) std::reverse(order.begin(), order.end());
  machine.live = machine.block_threads;
  while (machine.live != 0) {
    if (thread_order == Order::kRandom) Shuffle(order, seed);
    bool progress = false;
    for (unsigned i : order) {
      Thread& t = machine.threads[i];
      if (t.done || t.wait != Wait::kNone) continue;
      machine.current = &t;
      t.fiber->SwitchTo();
      progress = true;
    }
    if (!progress) ReleaseBarrier();
  }
}

char* AllocatePoisoned(size_t bytes) {
  if (bytes == 0) return nullptr;
  void* p = nullptr;
  if (posix_memalign(&p, 128, bytes) != 0) Fail("the host is out of memory for shared memory");
  return static_cast<char*>(std::memset(p, 0xFF, bytes));
}

}  // namespace

void SetOrder(Order order, uint64_t seed) {
  thread_order = order;
  order_seed = seed;
}

bool SetOrderFromText(const char* text) {
  if (std::strcmp(text, "forward") == 0) {
    SetOrder(Order::kForward);
  } else if (std::strcmp(text, "reverse") == 0) {
    SetOrder(Order::kReverse);
  } else if (std::strncmp(text, "random", 6) == 0 && (text[6] == '\0' || text[6] == ':')) {
    SetOrder(Order::kRandom, text[6] == ':' ? std::strtoull(text + 7, nullptr, 10) : 1);
  } else {
    return false;
  }
  return true;
}

void Launch(const Kernel& kernel, const LaunchShape& shape, void** args) {
  if (machine.current != nullptr) Fail("a launch from inside a kernel");
  const unsigned n = shape.block.x * shape.block.y * shape.block.z;
  machine.kernel = &kernel;
  machine.args = args;
  machine.threads = threads;
  machine.block_threads = n;
  machine.block_dim = shape.block;
  machine.grid_dim = shape.grid;
  machine.dynamic_shared = shape.dynamic_shared;
  machine.shared_bytes = kernel.shared_window + shape.dynamic_shared;
  Fiber::SetBody(FiberBody);
  for (auto& set : fibers) {
    for (unsigned i = 0; i < n; ++i) {
      if (set[i] == nullptr) set[i] = new Fiber;
    }
#if !defined(LT_EMU_TSAN)
    break;
#endif
  }
  Fiber::EnterScheduler();
  HappensBefore(&launch_begin_token);
  QuietWrites quiet;  // the scheduler's own writes, also those hidden in memset and free
  const uint64_t blocks = static_cast<uint64_t>(shape.grid.x) * shape.grid.y * shape.grid.z;
  for (uint64_t k = 0; k < blocks; ++k) {
    const uint64_t b = BlockAt(k, blocks);
    machine.block_index = {static_cast<unsigned>(b % shape.grid.x),
                           static_cast<unsigned>(b / shape.grid.x % shape.grid.y),
                           static_cast<unsigned>(b / shape.grid.x / shape.grid.y)};
    machine.shared = AllocatePoisoned(machine.shared_bytes);
    machine.warp_barriers = 0;
    machine.tokens = static_cast<char*>(std::malloc(kTokenBytes * (kBlockTokens + kWarpTokens)));
#if defined(LT_EMU_TSAN)
    Fiber** set = fibers[k & 1];
#else
    Fiber** set = fibers[0];
#endif
    for (unsigned i = 0; i < n; ++i) {
      threads[i] = Thread{};
      threads[i].id = {i % shape.block.x, i / shape.block.x % shape.block.y,
                       i / (shape.block.x * shape.block.y)};
      threads[i].linear = i;
      threads[i].fiber = set[i];
    }
    RunBlock(order_seed * 0x9E3779B97F4A7C15ull + b);
    if (profile_enabled) ProfileEndBlock();
    std::free(machine.shared);
    std::free(machine.tokens);
  }
  machine.current = nullptr;
  machine.kernel = nullptr;
  HappensAfter(&launch_end_token);
}

void Fail(const char* what, const Site* site, const Thread* thread) {
  if (thread == nullptr) thread = machine.current;
  std::fprintf(stderr, "emu: %s", what);
  if (machine.kernel != nullptr) std::fprintf(stderr, " in %s", machine.kernel->name);
  if (thread != nullptr) {
    std::fprintf(stderr, ", block (%u,%u,%u) thread (%u,%u,%u)", machine.block_index.x,
                 machine.block_index.y, machine.block_index.z, thread->id.x, thread->id.y,
                 thread->id.z);
  }
  if (site != nullptr) {
    if (site->file[0] != '\0') std::fprintf(stderr, ", %s:%d", site->file, site->line);
    std::fprintf(stderr, ", PTX line %d: %s", site->ptx_line, site->opcode);
  }
  std::fputc('\n', stderr);
  std::abort();
}

void RegisterKernels(const Kernel* kernels, size_t count) {
  for (size_t i = 0; i < count; ++i) Registry().push_back(kernels + i);
}

const Kernel* FindKernel(const char* name, int arch) {
  const Kernel* found = nullptr;
  for (const Kernel* k : Registry()) {
    if (std::strcmp(k->name, name) != 0 || (arch != 0 && k->arch != arch)) continue;
    if (found == nullptr || k->arch < found->arch) found = k;
  }
  return found;
}

}  // namespace lowtide::emu
