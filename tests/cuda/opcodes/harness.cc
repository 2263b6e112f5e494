// SPDX-License-Identifier: Apache-2.0
// A C entry point around the emulator, so that Python can launch translated kernels on NumPy
// arrays.
#include "machine.h"
#include "memory.h"

extern "C" int emu_launch(const char* name, const unsigned* grid, const unsigned* block,
                          unsigned dynamic_shared, const char* order, void** args) {
  lowtide::emu::check_global_addresses = false;
  const lowtide::emu::Kernel* kernel = lowtide::emu::FindKernel(name, 0);
  if (kernel == nullptr || !lowtide::emu::SetOrderFromText(order)) return 1;
  lowtide::emu::Launch(
      *kernel, {{grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, dynamic_shared}, args);
  return 0;
}
