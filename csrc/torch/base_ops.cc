// SPDX-License-Identifier: Apache-2.0
// The library's schema block and ISA control. Loading installs torch's thread pool.
#include "base/isa.h"
#include "base/parallel.h"
#include "torch/common.h"

namespace lowtide::torch_ops {
namespace {

void torch_pool(int64_t begin, int64_t end, int64_t grain, RangeFn fn, void* ctx) {
  TORCH_ERROR_CODE_CHECK(torch_parallel_for(begin, end, grain, fn, ctx));
}

void set_isa_op(int64_t isa) { set_isa(static_cast<Isa>(isa)); }
int64_t active_isa_op() { return static_cast<int64_t>(active_isa()); }

}  // namespace

STABLE_TORCH_LIBRARY(lowtide, m) {
  set_parallel_for(torch_pool);
  m.def("_set_isa(int isa) -> ()");
  m.def("_active_isa() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(lowtide, CompositeExplicitAutograd, m) {
  m.impl("_set_isa", LT_BOX(&set_isa_op));
  m.impl("_active_isa", LT_BOX(&active_isa_op));
}

}  // namespace lowtide::torch_ops
