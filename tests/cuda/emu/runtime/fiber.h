// SPDX-License-Identifier: Apache-2.0
// A fiber: one CUDA thread's stack and registers. All fibers share one OS thread; control passes
// only at SwitchTo (scheduler to fiber) and Yield (fiber to scheduler), so a run is deterministic.
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <cstdint>

namespace lowtide::emu {

class Fiber {
 public:
  static constexpr size_t kStackBytes = 256 * 1024;

  Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Scheduler side. The first switch starts `Body()` on the fiber; a body never returns, it yields
  // for ever.
  void SwitchTo();
  bool OwnsAddress(uint64_t address, size_t bytes) const;

  static void Yield();                  // fiber side: back to the scheduler
  static void SetBody(void (*body)());  // what every fiber runs
  static void
  EnterScheduler();  // remembers the OS thread the scheduler runs on; call once per launch

 private:
  static void Trampoline();

  char* stack_;
  void* stack_pointer_ = nullptr;
  void* sanitizer_ = nullptr;  // TSan fiber, or ASan fake stack
  ucontext_t context_{};       // only where there is no assembly switch
  bool started_ = false;
};

}  // namespace lowtide::emu
