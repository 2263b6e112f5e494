// SPDX-License-Identifier: Apache-2.0
// lowtide_counted: lists its kernels; lowtide_counted NAME: prepares one and runs it twice, the
// second time inside of lowtide_counted_region, which a profiler is told to look at.
#include <cstdio>

#include "base/isa.h"
#include "counted.h"

extern "C" __attribute__((noinline)) void lowtide_counted_region(
    const std::function<void()>& kernel) {
  kernel();
  __asm__ volatile("" ::: "memory");  // no tail call: the region ends here
}

int main(int argc, char** argv) {
  const auto& all = lowtide::counted::registry();
  if (argc != 2) {
    std::printf("isa %s\n", lowtide::isa_name(lowtide::active_isa()));
    for (const auto& [name, prepare] : all) std::printf("%s\n", name.c_str());
    return 0;
  }
  const auto found = all.find(argv[1]);
  if (found == all.end()) {
    std::fprintf(stderr, "lowtide_counted: no kernel %s\n", argv[1]);
    return 2;
  }
  const auto kernel = found->second();
  kernel();  // tables and threads are there now
  lowtide_counted_region(kernel);
}
