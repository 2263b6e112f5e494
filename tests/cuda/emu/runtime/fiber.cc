// SPDX-License-Identifier: Apache-2.0
#include "fiber.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

#include "sanitizers.h"

// Our own context switch: a dozen instructions, no signal-mask system call, and (unlike swapcontext
// and longjmp) no interceptor of a sanitizer in between. Elsewhere swapcontext does, at a tenth of
// the speed.
#if defined(__x86_64__) && !defined(LT_EMU_UCONTEXT)
#define LT_EMU_ASM_SWITCH 1
extern "C" void lt_emu_switch(void** save, void* load);
asm(R"(.text
.type lt_emu_switch,@function
lt_emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size lt_emu_switch,.-lt_emu_switch
)");
#endif

namespace lowtide::emu {
namespace {

struct Scheduler {
  void* stack_pointer = nullptr;
  void* sanitizer = nullptr;
  const void* stack_bottom = nullptr;
  size_t stack_size = 0;
  ucontext_t context{};
};

Scheduler scheduler;
Fiber* running = nullptr;
void (*fiber_body)() = nullptr;

}  // namespace

Fiber::Fiber() {
  stack_ = static_cast<char*>(mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (stack_ == MAP_FAILED || mprotect(stack_, 4096, PROT_NONE) != 0) {
    std::perror("emu: cannot map the stack of a CUDA thread");
    std::abort();
  }
#if defined(LT_EMU_TSAN)
  sanitizer_ = __tsan_create_fiber(0);
#endif
}

bool Fiber::OwnsAddress(uint64_t address, size_t bytes) const {
  const auto low = reinterpret_cast<uint64_t>(stack_) + 4096;
  const uint64_t high = reinterpret_cast<uint64_t>(stack_) + kStackBytes;
  return address >= low && address <= high && bytes <= high - address;
}

void Fiber::SetBody(void (*body)()) { fiber_body = body; }

void Fiber::EnterScheduler() {
#if defined(LT_EMU_TSAN)
  scheduler.sanitizer = __tsan_get_current_fiber();
#endif
}

void Fiber::Trampoline() {
#if defined(LT_EMU_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler.stack_bottom, &scheduler.stack_size);
#endif
  fiber_body();
  std::abort();
}

void Fiber::SwitchTo() {
  running = this;
#if defined(LT_EMU_TSAN)
  __tsan_switch_to_fiber(sanitizer_, __tsan_switch_to_fiber_no_sync);
#elif defined(LT_EMU_ASAN)
  __sanitizer_start_switch_fiber(&scheduler.sanitizer, stack_, kStackBytes);
#endif
#if defined(LT_EMU_ASM_SWITCH)
  if (!started_) {
    started_ = true;
    void** top = reinterpret_cast<void**>(stack_ + kStackBytes);
    *--top = nullptr;  // the return address Trampoline never uses; keeps rsp % 16 == 8 at its entry
    *--top = reinterpret_cast<void*>(&Fiber::Trampoline);
    stack_pointer_ = top - 6;  // six callee-saved registers are popped first
  }
  lt_emu_switch(&scheduler.stack_pointer, stack_pointer_);
#else
  if (!started_) {
    started_ = true;
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_;
    context_.uc_stack.ss_size = kStackBytes;
    context_.uc_link = nullptr;
    makecontext(&context_, &Fiber::Trampoline, 0);
  }
  swapcontext(&scheduler.context, &context_);
#endif
#if defined(LT_EMU_ASAN)
  __sanitizer_finish_switch_fiber(scheduler.sanitizer, nullptr, nullptr);
#endif
}

void Fiber::Yield() {
  Fiber* self = running;
#if defined(LT_EMU_TSAN)
  __tsan_switch_to_fiber(scheduler.sanitizer, __tsan_switch_to_fiber_no_sync);
#elif defined(LT_EMU_ASAN)
  __sanitizer_start_switch_fiber(&self->sanitizer_, scheduler.stack_bottom, scheduler.stack_size);
#endif
#if defined(LT_EMU_ASM_SWITCH)
  lt_emu_switch(&self->stack_pointer_, scheduler.stack_pointer);
#else
  swapcontext(&self->context_, &scheduler.context);
#endif
#if defined(LT_EMU_ASAN)
  __sanitizer_finish_switch_fiber(self->sanitizer_, &scheduler.stack_bottom, &scheduler.stack_size);
#endif
}

}  // namespace lowtide::emu
