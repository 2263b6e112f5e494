// SPDX-License-Identifier: Apache-2.0
#include "base/error.h"
#include "base/fpenv.h"
#include "bindings.h"
#include "spsa/digest.h"
#include "spsa/low_rank.h"
#include "spsa/replay.h"
#include "spsa/replay_codes.h"

namespace lowtide::bind {
namespace {

spsa::FloatType master_type(const py::array& w, bool bfloat16) {
  require((w.flags() & py::array::c_style) != 0, "replay: w must be contiguous in C order");
  if (py::isinstance<py::array_t<float>>(w)) return spsa::FloatType::f32;
  require(w.itemsize() == 2, "replay: w must be float32, float16, or bfloat16 as uint16");
  return bfloat16 ? spsa::FloatType::bf16 : spsa::FloatType::f16;
}

spsa::Schedule schedule_of(uint64_t seed, const Array<int64_t>& round_steps,
                           const Array<float>& decays, const Array<int64_t>& first,
                           const Array<int64_t>& dir_steps, const Array<int64_t>& dir_slots,
                           const Array<float>& coeffs) {
  require(round_steps.size() == decays.size() && first.size() == decays.size() + 1 &&
              dir_steps.size() == coeffs.size() && dir_slots.size() == coeffs.size(),
          "schedule: the lengths of its arrays do not fit together");
  return {seed,          decays.size(),    round_steps.data(), decays.data(), first.data(),
          coeffs.size(), dir_steps.data(), dir_slots.data(),   coeffs.data()};
}

}  // namespace

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
  m.def(
      "spsa_replay",
      [](py::array w, bool bfloat16, uint32_t param, double scale, double threshold, double floor,
         uint64_t seed, int dist, const Array<int64_t>& round_steps, const Array<float>& decays,
         const Array<int64_t>& first, const Array<int64_t>& dir_steps,
         const Array<int64_t>& dir_slots, const Array<float>& coeffs, int64_t offset) {
        spsa::ReplayTensor t;
        t.n = w.size(), t.param = param, t.offset = offset, t.type = master_type(w, bfloat16);
        t.scale = to_float_rn(scale), t.threshold = to_float_rn(threshold);
        t.floor = to_float_rn(floor), t.w = w.mutable_data();
        const auto schedule =
            schedule_of(seed, round_steps, decays, first, dir_steps, dir_slots, coeffs);
        py::gil_scoped_release nogil;
        spsa::replay({t}, schedule, static_cast<random::Dist>(dist));
      },
      py::arg("w"), py::arg("bfloat16"), py::arg("param"), py::arg("scale"), py::arg("threshold"),
      py::arg("floor"), py::arg("seed"), py::arg("dist"), py::arg("round_steps").noconvert(),
      py::arg("decays").noconvert(), py::arg("first").noconvert(), py::arg("dir_steps").noconvert(),
      py::arg("dir_slots").noconvert(), py::arg("coeffs").noconvert(), py::arg("offset"),
      "Takes w through the steps of a schedule, in place.");
  m.def(
      "spsa_replay_codes",
      [](Array<uint8_t> codes, const Array<float>& scale, const std::optional<Array<uint8_t>>& zero,
         int64_t cols, int bits, int64_t group, uint32_t param, double layer_scale, uint64_t seed,
         int dist, const Array<int64_t>& round_steps, const Array<float>& decays,
         const Array<int64_t>& first, const Array<int64_t>& dir_steps,
         const Array<int64_t>& dir_slots, const Array<float>& coeffs, int64_t offset) {
        require(scale.ndim() == 2, "replay_codes: scale must have shape (rows, groups)");
        const quant::GroupShape s{scale.shape(0), cols, group, bits};
        quant::check_shape(s);
        const int64_t groups = s.rows * quant::groups_per_row(s);
        require(codes.size() == s.rows * quant::row_bytes(s) && scale.size() == groups &&
                    (!zero || zero->size() == groups),
                "replay_codes: codes, scale and zero do not fit cols, bits and group");
        spsa::CodesTensor t;
        t.w = {out(codes), const_cast<float*>(scale.data()),
               zero ? const_cast<uint8_t*>(zero->data()) : nullptr, s};
        t.param = param, t.offset = offset, t.scale = to_float_rn(layer_scale);
        const auto schedule =
            schedule_of(seed, round_steps, decays, first, dir_steps, dir_slots, coeffs);
        py::gil_scoped_release nogil;
        spsa::replay_codes({t}, schedule, static_cast<random::Dist>(dist));
      },
      py::arg("codes").noconvert(), py::arg("scale").noconvert(), py::arg("zero").noconvert(),
      py::arg("cols"), py::arg("bits"), py::arg("group"), py::arg("param"), py::arg("layer_scale"),
      py::arg("seed"), py::arg("dist"), py::arg("round_steps").noconvert(),
      py::arg("decays").noconvert(), py::arg("first").noconvert(), py::arg("dir_steps").noconvert(),
      py::arg("dir_slots").noconvert(), py::arg("coeffs").noconvert(), py::arg("offset"),
      "Takes the codes of a group-quantized matrix through the steps of a schedule, in place.");
  m.def(
      "spsa_low_rank_perturb",
      [](Array<float> dst, const Array<float>& w, double scale, uint64_t seed, uint64_t step,
         uint64_t v_step, uint32_t slot, uint32_t param, int64_t rank, int64_t first_row) {
        require(w.ndim() == 2 && dst.ndim() == 2 && dst.shape(0) == w.shape(0) &&
                    dst.shape(1) == w.shape(1),
                "low_rank: out and w must be matrices of one shape");
        const spsa::LowRankMatrix matrix{w.shape(0), w.shape(1), first_row, rank, param};
        float* to = out(dst);
        const float* from = w.data();
        py::gil_scoped_release nogil;
        spsa::low_rank_perturb(to, spsa::FloatType::f32, from, spsa::FloatType::f32,
                               to_float_rn(scale), matrix, {seed, step, v_step, slot});
      },
      py::arg("out").noconvert(), py::arg("w").noconvert(), py::arg("scale"), py::arg("seed"),
      py::arg("step"), py::arg("v_step"), py::arg("slot"), py::arg("param"), py::arg("rank"),
      py::arg("first_row"), "out = w + scale U V^T / sqrt(rank).");
  m.def(
      "spsa_low_rank_replay",
      [](Array<float> w, double scale, uint64_t seed, uint32_t param, int64_t rank,
         const Array<int64_t>& round_steps, const Array<float>& decays, const Array<int64_t>& first,
         const Array<int64_t>& dir_steps, const Array<int64_t>& v_steps,
         const Array<int64_t>& dir_slots, const Array<float>& coeffs, int64_t first_row) {
        require(w.ndim() == 2, "low_rank: w must be a matrix");
        require(v_steps.size() == coeffs.size(),
                "schedule: the lengths of its arrays do not fit together");
        const spsa::LowRankMatrix matrix{w.shape(0), w.shape(1), first_row, rank, param};
        const auto schedule =
            schedule_of(seed, round_steps, decays, first, dir_steps, dir_slots, coeffs);
        float* p = out(w);
        const int64_t* v = v_steps.data();
        py::gil_scoped_release nogil;
        spsa::low_rank_replay(p, spsa::FloatType::f32, to_float_rn(scale), matrix, schedule, v);
      },
      py::arg("w").noconvert(), py::arg("scale"), py::arg("seed"), py::arg("param"),
      py::arg("rank"), py::arg("round_steps").noconvert(), py::arg("decays").noconvert(),
      py::arg("first").noconvert(), py::arg("dir_steps").noconvert(),
      py::arg("v_steps").noconvert(), py::arg("dir_slots").noconvert(),
      py::arg("coeffs").noconvert(), py::arg("first_row"),
      "Takes a matrix through the steps of a schedule along directions of low rank, in place.");
}

}  // namespace lowtide::bind
