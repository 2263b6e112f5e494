// SPDX-License-Identifier: Apache-2.0
// A C entry point around the emulator, so that Python can launch translated kernels on NumPy arrays.
#include "machine.h"
#include "memory.h"

extern "C" int emu_launch(const char* name, const unsigned* grid, const unsigned* block, unsigned dynamic_shared, const char* order,
                          void** args) {
  lt_emu::check_global_addresses = false;
  const lt_emu::Kernel* kernel = lt_emu::FindKernel(name, 0);
  if (kernel == nullptr || !lt_emu::SetOrderFromText(order)) return 1;
  lt_emu::Launch(*kernel, {{grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, dynamic_shared}, args);
  return 0;
}
