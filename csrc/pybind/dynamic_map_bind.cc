// SPDX-License-Identifier: Apache-2.0
#include "base/error.h"
#include "bindings.h"
#include "quant/dynamic_map.h"

namespace lowtide::bind {

void bind_dynamic_map(py::module_& m) {
  m.def(
      "quantize_dynamic",
      [](Array<uint8_t> codes, Array<float> absmax, const Array<float>& x, bool is_signed) {
        require(codes.size() == x.size() && absmax.size() == quant::dynamic_blocks(x.size()),
                "quantize_dynamic: codes needs one element for each of x, absmax one for each 256");
        uint8_t* c = out(codes);
        float* a = out(absmax);
        const float* p = x.data();
        const int64_t n = x.size();
        py::gil_scoped_release nogil;
        return quant::quantize_dynamic(c, a, p, n, is_signed);
      },
      py::arg("codes").noconvert(), py::arg("absmax").noconvert(), py::arg("x").noconvert(),
      py::arg("signed"));
  m.def(
      "dequantize_dynamic",
      [](Array<float> x, const Array<uint8_t>& codes, const Array<float>& absmax, bool is_signed) {
        require(
            codes.size() == x.size() && absmax.size() == quant::dynamic_blocks(x.size()),
            "dequantize_dynamic: codes needs one element for each of out, absmax one for each 256");
        float* p = out(x);
        const uint8_t* c = codes.data();
        const float* a = absmax.data();
        const int64_t n = codes.size();
        py::gil_scoped_release nogil;
        quant::dequantize_dynamic(p, c, a, n, is_signed);
      },
      py::arg("out").noconvert(), py::arg("codes").noconvert(), py::arg("absmax").noconvert(),
      py::arg("signed"));
}

}  // namespace lowtide::bind
