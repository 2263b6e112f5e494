// SPDX-License-Identifier: Apache-2.0
#include "base/crc32c.h"
#include "bindings.h"

namespace lowtide::bind {

void bind_base(py::module_& m) {
  m.def(
      "crc32c",
      [](const py::bytes& data, uint32_t crc) {
        const auto view = static_cast<std::string_view>(data);
        return crc32c(view.data(), view.size(), crc);
      },
      py::arg("data"), py::arg("crc") = 0,
      "CRC32C of data, continuing crc (0 for nothing before).");
}

}  // namespace lowtide::bind
