// SPDX-License-Identifier: Apache-2.0
#include <tuple>

#include "quant/dynamic_map.h"
#include "torch/common.h"

namespace lowtide::torch_ops {
namespace {

std::tuple<Tensor, Tensor, Tensor> quantize_dynamic(const Tensor& x, bool is_signed) {
  const float* p = const_f32(x, "x");
  const int64_t n = x.numel();
  Tensor codes = torch::stable::new_empty(x, {n}, ScalarType::Byte);
  Tensor absmax = torch::stable::new_empty(x, {quant::dynamic_blocks(n)}, ScalarType::Float);
  Tensor nonfinite = torch::stable::new_empty(x, {}, ScalarType::Long);
  *static_cast<int64_t*>(nonfinite.mutable_data_ptr()) =
      quant::quantize_dynamic(static_cast<uint8_t*>(codes.mutable_data_ptr()),
                              static_cast<float*>(absmax.mutable_data_ptr()), p, n, is_signed);
  return {codes, absmax, nonfinite};
}

void dequantize_dynamic(const Tensor& out, const Tensor& codes, const Tensor& absmax,
                        bool is_signed) {
  const int64_t n = codes.numel();
  STD_TORCH_CHECK(out.numel() == n, "lowtide: out must have ", n, " elements, got ", out.numel());
  STD_TORCH_CHECK(absmax.numel() == quant::dynamic_blocks(n), "lowtide: absmax must have ",
                  quant::dynamic_blocks(n), " elements, got ", absmax.numel());
  quant::dequantize_dynamic(f32(out, "out"), const_u8(codes, "codes"), const_f32(absmax, "absmax"),
                            n, is_signed);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lowtide, m) {
  m.def("quantize_dynamic(Tensor x, bool signed) -> (Tensor, Tensor, Tensor)");
  m.def("dequantize_dynamic(Tensor(a!) out, Tensor codes, Tensor absmax, bool signed) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lowtide, CPU, m) {
  m.impl("quantize_dynamic", LT_BOX(&quantize_dynamic));
  m.impl("dequantize_dynamic", LT_BOX(&dequantize_dynamic));
}

}  // namespace lowtide::torch_ops
