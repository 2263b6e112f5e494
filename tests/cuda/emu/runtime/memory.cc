// SPDX-License-Identifier: Apache-2.0
#include "memory.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "profile.h"
#include "sanitizers.h"

namespace lowtide::emu {

bool check_global_addresses = true;

namespace {

char* arena = nullptr;
char* arena_end = nullptr;  // of what has been handed out, whole pages
int open_depth = 0;
size_t live_bytes = 0;
std::map<uint64_t, size_t> live;
std::map<uint64_t, size_t> adopted;
uint64_t last_begin = 0, last_end = 0;  // the allocation hit by the last check

void Protect(int protection) {
  if (live.empty()) return;
  char* begin = reinterpret_cast<char*>(live.begin()->first);
  if (mprotect(begin, static_cast<size_t>(arena_end - begin), protection) != 0) {
    std::perror("emu: cannot change the protection of device memory");
    std::abort();
  }
}

bool InRanges(const Range* ranges, unsigned count, uint64_t address, unsigned bytes) {
  for (unsigned i = 0; i < count; ++i) {
    if (address >= ranges[i].begin && address - ranges[i].begin + bytes <= ranges[i].bytes)
      return true;
  }
  return false;
}

bool InShared(uint64_t offset, unsigned bytes) {
  const Kernel& k = *machine.kernel;
  if (offset >= k.shared_window) return offset - k.shared_window + bytes <= machine.dynamic_shared;
  return InRanges(k.shared_variables, k.shared_variable_count, offset, bytes);
}

bool InGlobal(uint64_t address, unsigned bytes) {
  if (!check_global_addresses || DeviceMemory::Contains(address, bytes)) return true;
  return InRanges(machine.kernel->module_variables, machine.kernel->module_variable_count, address,
                  bytes);
}

bool InParams(uint64_t address, unsigned bytes) {
  for (unsigned i = 0; i < machine.kernel->param_count; ++i) {
    const Range param = {reinterpret_cast<uint64_t>(machine.args[i]),
                         machine.kernel->param_bytes[i]};
    if (InRanges(&param, 1, address, bytes)) return true;
  }
  return false;
}

bool InWindow(uint64_t address) {
  const uint64_t base = reinterpret_cast<uint64_t>(machine.shared);
  return base != 0 && address >= base && address < base + machine.shared_bytes;
}

}  // namespace

DeviceMemory::Open::Open() {
  if (open_depth++ == 0) Protect(PROT_READ | PROT_WRITE);
}

DeviceMemory::Open::~Open() {
  if (--open_depth == 0) Protect(PROT_NONE);
}

void* DeviceMemory::Allocate(size_t bytes) {
  if (arena == nullptr) {
    void* p =
        mmap(nullptr, kArenaBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return nullptr;
    arena = arena_end = static_cast<char*>(p);
  }
  if (bytes > kArenaBytes) return nullptr;
  const size_t pages = (bytes + kGapBytes + 4095) / 4096 * 4096;
  if (pages > static_cast<size_t>(arena + kArenaBytes - arena_end)) return nullptr;
  char* p = arena_end;
  if (mprotect(p, pages, PROT_READ | PROT_WRITE) != 0) return nullptr;
  arena_end += pages;
  live[reinterpret_cast<uint64_t>(p)] = bytes;
  live_bytes += bytes;
  {
    QuietWrites quiet;
    std::memset(p, 0xFF, bytes);
  }
  ForbidMemory(p + bytes, pages - bytes);
  if (open_depth == 0) mprotect(p, pages, PROT_NONE);
  return p;
}

bool DeviceMemory::Free(void* p) {
  auto it = live.find(reinterpret_cast<uint64_t>(p));
  if (it == live.end()) return false;
  live_bytes -= it->second;
  ForbidMemory(p, it->second);
  const size_t pages = (it->second + 4095) / 4096 * 4096;
  mprotect(p, pages, PROT_NONE);
  madvise(p, pages, MADV_DONTNEED);
  live.erase(it);
  last_begin = last_end = 0;
  return true;
}

bool DeviceMemory::IsDevice(const void* p) {
  const char* c = static_cast<const char*>(p);
  return arena != nullptr && c >= arena && c < arena + kArenaBytes;
}

bool DeviceMemory::Contains(uint64_t address, size_t bytes) {
  if (address >= last_begin && address <= last_end && bytes <= last_end - address) return true;
  const bool device = IsDevice(reinterpret_cast<const void*>(address));
  const auto& ranges = device ? live : adopted;
  for (auto it = ranges.upper_bound(address); it != ranges.begin();) {
    --it;
    const uint64_t end = it->first + it->second;
    if (address <= end && bytes <= end - address) {
      last_begin = it->first;
      last_end = end;
      return true;
    }
    if (device) return false;  // adopted ranges may overlap
  }
  return false;
}

void DeviceMemory::Adopt(const void* p, size_t bytes) {
  size_t& held = adopted[reinterpret_cast<uint64_t>(p)];
  if (bytes > held) held = bytes;
  last_begin = last_end = 0;
}

void DeviceMemory::Disown() {
  adopted.clear();
  last_begin = last_end = 0;
}

size_t DeviceMemory::LiveBytes() { return live_bytes; }

char* CheckedAddress(Space space, uint64_t address, unsigned bytes, const Site& site) {
  // Parameters lie where the host compiler put the caller's copies: only their offsets are aligned.
  if (space != Space::kParam && address % bytes != 0) Fail("misaligned access", &site);
  switch (space) {
    case Space::kShared:
      if (!InShared(address, bytes)) Fail("shared access outside its variable", &site);
      break;
    case Space::kGlobal:
      if (!InGlobal(address, bytes)) Fail("global access outside device allocations", &site);
      break;
    case Space::kConst:
      if (!InRanges(machine.kernel->module_variables, machine.kernel->module_variable_count,
                    address, bytes)) {
        Fail("constant access outside its variable", &site);
      }
      break;
    case Space::kLocal:
      if (!machine.current->fiber->OwnsAddress(address, bytes))
        Fail("local access outside the stack", &site);
      break;
    case Space::kParam:
      if (!InParams(address, bytes)) Fail("access outside the kernel's parameters", &site);
      break;
    case Space::kGeneric:
      if (InWindow(address)) {
        if (!InShared(address - reinterpret_cast<uint64_t>(machine.shared), bytes)) {
          Fail("shared access outside its variable", &site);
        }
      } else if (!machine.current->fiber->OwnsAddress(address, bytes) &&
                 !InParams(address, bytes) && !InGlobal(address, bytes)) {
        Fail("generic access outside device allocations", &site);
      }
      break;
  }
  if (profile_enabled) ProfileAccess(space, address, bytes, site);
  return space == Space::kShared ? machine.shared + address : reinterpret_cast<char*>(address);
}

}  // namespace lowtide::emu
