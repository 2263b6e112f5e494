// SPDX-License-Identifier: Apache-2.0
#include "base/error.h"
#include "bindings.h"
#include "spsa/digest.h"

namespace lowtide::bind {

void bind_spsa(py::module_& m) {
  m.def(
      "spsa_digest",
      [](const py::array& w, int64_t offset) {
        require((w.flags() & py::array::c_style) != 0, "digest: w must be contiguous in C order");
        const void* p = w.data();
        const auto width = static_cast<int>(w.itemsize());
        const int64_t n = w.size();
        py::gil_scoped_release nogil;
        return spsa::digest(p, width, n, offset);
      },
      py::arg("w"), py::arg("offset"),
      "Sum over elements of mix64(bits + (offset + i) * stride) mod 2**64.");
}

}  // namespace lowtide::bind
