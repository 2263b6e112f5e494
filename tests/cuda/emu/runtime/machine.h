// SPDX-License-Identifier: Apache-2.0
// The machine that PTX runs on: blocks one after another, every CUDA thread of the running block a
// fiber.
//
// Threads switch only where CUDA lets them meet (barriers, warp intrinsics), in forward, reverse or
// seeded random order of threads and of blocks. Where CUDA says "undefined" the machine stops with
// a message that names the kernel, the thread and the line of the .cu file: divergent barriers,
// masks that name absent lanes, accesses outside allocations, misaligned vectors. Shared memory is
// fresh and filled with 0xFF (NaN) for every block.
//
// Not modelled: streams (every launch is synchronous), memory-model effects between blocks of one
// launch beyond atomics (fences do nothing), clocks, textures, clusters, asynchronous copies,
// tensor cores.
#pragma once

#include <cstddef>
#include <cstdint>

#include "fiber.h"

namespace lowtide::emu {

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};

// Where an instruction comes from; one static object per instruction, so its address identifies it.
struct Site {
  const char* opcode;
  const char* file;  // "" when the PTX carries no line information
  int line;
  int ptx_line;
};

struct Range {
  uint64_t begin;
  uint64_t bytes;
};

// One translated kernel (generated code defines these).
struct Kernel {
  const char* name;
  int arch;  // compute capability of the PTX, e.g. 80
  void (*run)(void** args);
  unsigned max_threads;           // .maxntid, or 1024
  unsigned static_shared;         // bytes the kernel declares
  unsigned shared_window;         // where dynamic shared memory starts in the emulated window (gaps
                                  // between variables)
  const Range* shared_variables;  // offsets inside the window
  unsigned shared_variable_count;
  const Range* module_variables;  // addresses of __device__ / __constant__ variables of the module
  unsigned module_variable_count;
  const unsigned* param_bytes;
  unsigned param_count;
};

struct LaunchShape {
  Dim3 grid, block;
  size_t dynamic_shared = 0;
};

enum class Order { kForward, kReverse, kRandom };

enum class Wait : uint8_t { kNone, kBlock, kWarp };

struct Thread {
  Dim3 id;
  unsigned linear;
  Wait wait;
  bool done;
  bool predicate;      // block barrier: its vote
  uint32_t mask;       // warp operation: who takes part
  int source;          // warp operation: lane to read from, -1 for a ballot, -2 for all lanes
  uint64_t value;      // warp operation: what this lane offers
  uint64_t result;     // ballot, the value read, or the barrier's count
  uint64_t* gathered;  // source -2: 32 values
  const Site* site;
  unsigned barriers;  // block barriers passed, for the race detector
  char* token;        // race detector: of the warp barrier it waits at
  Fiber* fiber;
};

struct Machine {
  Thread* current = nullptr;
  Thread* threads = nullptr;  // of the running block, by linear index
  unsigned block_threads = 0;
  unsigned live = 0;
  Dim3 block_index, block_dim, grid_dim;
  const Kernel* kernel = nullptr;
  void** args = nullptr;
  char* shared = nullptr;   // window of the running block
  size_t shared_bytes = 0;  // static part with gaps, then the dynamic part
  size_t dynamic_shared = 0;
  // Race detector, fresh for each block: what barriers publish through (see sync.cc).
  char* tokens = nullptr;
  unsigned warp_barriers = 0;
};

// A fast thread may reach its next barrier before a slow one has resumed from the last. Were they
// to share a token, the slow one would acquire what the fast one did since, and a race in between
// would look ordered.
constexpr unsigned kBlockTokens = 2;
constexpr unsigned kWarpTokens = 1024;  // a ring
constexpr unsigned kTokenBytes = 8;

extern Machine machine;  // written by the machine only; generated code reads it

void SetOrder(Order order, uint64_t seed = 1);
// Reads LT_EMU_ORDER: "forward", "reverse", "random" or "random:SEED". False if the text is none of
// these.
bool SetOrderFromText(const char* text);

// Runs every block of the grid to completion. Shapes are the caller's to check (fakecudart does).
void Launch(const Kernel& kernel, const LaunchShape& shape, void** args);

// Prints "emu: WHAT in KERNEL (block, thread, source line, instruction)" and aborts.
[[noreturn]] void Fail(const char* what, const Site* site = nullptr,
                       const Thread* thread = nullptr);

// Registry of translated kernels: generated files add theirs when the program starts.
void RegisterKernels(const Kernel* kernels, size_t count);
const Kernel* FindKernel(const char* name, int arch);  // arch 0: the lowest one there is

}  // namespace lowtide::emu
