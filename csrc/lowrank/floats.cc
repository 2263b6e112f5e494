// SPDX-License-Identifier: Apache-2.0
#include "lowrank/floats.h"

#include <new>

namespace lowtide::lowrank {
namespace {

constexpr size_t kSmall = size_t{64} << 10;  // malloc is as good below this

struct Spares {
  struct Block {
    void* p;
    size_t bytes;
  };
  static constexpr int kMost = 8;
  Block blocks[kMost];
  int count = 0;
  size_t held = 0;

  void* take(size_t bytes) {
    for (int i = 0; i < count; ++i)
      if (blocks[i].bytes == bytes) return remove(i);
    return nullptr;
  }
  void* remove(int i) {
    void* p = blocks[i].p;
    held -= blocks[i].bytes;
    for (--count; i < count; ++i) blocks[i] = blocks[i + 1];
    return p;
  }
  void give(void* p, size_t bytes) {
    while (count == kMost || (count > 0 && held + bytes > kSpareBytes))
      ::operator delete(remove(0));
    blocks[count++] = {p, bytes};
    held += bytes;
  }
  ~Spares() {
    while (count > 0) ::operator delete(remove(0));
  }
};

thread_local Spares spares;

size_t rounded(size_t bytes) { return (bytes + kSmall - 1) / kSmall * kSmall; }

}  // namespace

void* take_buffer(size_t bytes) {
  if (bytes < kSmall || bytes > kSpareBytes) return ::operator new(bytes);
  void* p = spares.take(rounded(bytes));
  return p != nullptr ? p : ::operator new(rounded(bytes));
}

void give_buffer(void* p, size_t bytes) noexcept {
  if (p == nullptr) return;
  if (bytes < kSmall || bytes > kSpareBytes)
    ::operator delete(p);
  else
    spares.give(p, rounded(bytes));
}

}  // namespace lowtide::lowrank
