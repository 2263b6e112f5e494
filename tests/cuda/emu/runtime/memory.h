// SPDX-License-Identifier: Apache-2.0
// Memory as kernels see it: checked access to global, shared, local, constant and parameter space.
//
// Device memory is one arena of address space. Host code cannot touch it (it is PROT_NONE outside
// the runtime's own calls and launches); kernels can touch live allocations only. Freed addresses
// are never handed out again.
#pragma once

#include <cstddef>
#include <cstdint>

#include "machine.h"

namespace lowtide::emu {

class DeviceMemory {
 public:
  static constexpr size_t kArenaBytes = size_t{1} << 36;  // address space, not memory
  static constexpr size_t kGapBytes = 4096;               // between allocations

  static void* Allocate(size_t bytes);  // poisoned with 0xFF; null when the arena is used up
  static bool Free(void* p);            // false: not the start of a live allocation
  static bool IsDevice(const void* p);
  static bool Contains(uint64_t address, size_t bytes);  // inside one live allocation
  static size_t LiveBytes();

  // Host memory that kernels may touch as if it had been allocated here, until Disown(). For code
  // whose allocator is not this runtime's.
  static void Adopt(const void* p, size_t bytes);
  static void Disown();

  // While one of these lives, the arena can be read and written by this process.
  class Open {
   public:
    Open();
    ~Open();
    Open(const Open&) = delete;
    Open& operator=(const Open&) = delete;
  };
};

// Opcode tests run kernels on plain host memory; everything else keeps the check.
extern bool check_global_addresses;

enum class Space : uint8_t { kGlobal, kShared, kLocal, kConst, kGeneric, kParam };

// Returns the host address of `bytes` bytes at `address` in the space, or stops the program.
char* CheckedAddress(Space space, uint64_t address, unsigned bytes, const Site& site);

template <Space space, class T, int lanes>
inline T* Address(uint64_t address, const Site& site) {
  return reinterpret_cast<T*>(CheckedAddress(space, address, sizeof(T) * lanes, site));
}

// ld.param by name: offsets are checked by the translator.
template <class T>
inline T Param(void** args, int index, unsigned offset) {
  T v;
  __builtin_memcpy(&v, static_cast<const char*>(args[index]) + offset, sizeof v);
  return v;
}

}  // namespace lowtide::emu
