// SPDX-License-Identifier: Apache-2.0
// The optimizer kernels on lists of NumPy arrays. bfloat16 arrays are passed as their uint16 bits.
#include <algorithm>
#include <string>
#include <vector>

#include "base/error.h"
#include "bindings.h"
#include "optim/apply_update.h"
#include "optim/channel_energy.h"
#include "optim/fused_step.h"

namespace lowtide::bind {
namespace {

using optim::StepTensor;
using optim::WeightStore;
using F32List = std::vector<Array<float>>;
using U8List = std::vector<Array<uint8_t>>;
using AnyList = std::vector<py::array>;  // float32, or uint16 holding bfloat16

void check(bool ok, const char* name, const std::string& what) {
  if (!ok) throw Error(ErrorKind::value, std::string(name) + " must " + what);
}

void check_length(size_t got, size_t want, const char* name) {
  check(got == want, name, "list " + std::to_string(want) + " arrays, got " + std::to_string(got));
}

void check_size(int64_t got, int64_t want, const char* name) {
  check(got == want, name,
        "have " + std::to_string(want) + " elements, got " + std::to_string(got));
}

Dtype dtype_of(const py::array& a, const char* name) {
  const bool f32 = py::isinstance<Array<float>>(a), bf16 = py::isinstance<Array<uint16_t>>(a);
  check(f32 || bf16, name, "be C-contiguous float32 arrays, or uint16 arrays with bfloat16 bits");
  return f32 ? Dtype::f32 : Dtype::bf16;
}

void no_repeats(std::vector<const void*> at, const char* name) {
  std::sort(at.begin(), at.end());
  check(std::adjacent_find(at.begin(), at.end()) == at.end(), name, "not list one array twice");
}

WeightStore weight_store(const py::array& p, bool stochastic) {
  if (dtype_of(p, "ps") == Dtype::f32) return WeightStore::f32;
  return stochastic ? WeightStore::bf16_stochastic : WeightStore::bf16_nearest;
}

void* writable(py::array& a) { return a.mutable_data(); }

std::vector<StepTensor> weights(AnyList& ps, const AnyList& gs, bool stochastic,
                                const std::vector<uint32_t>& params) {
  check_length(gs.size(), ps.size(), "gs");
  check_length(params.size(), ps.size(), "params");
  std::vector<StepTensor> list(ps.size());
  std::vector<const void*> at;
  for (size_t i = 0; i < ps.size(); ++i) {
    check_size(gs[i].size(), ps[i].size(), "gs");
    list[i].n = ps[i].size();
    list[i].param = params[i];
    list[i].weight_store = weight_store(ps[i], stochastic);
    list[i].p = writable(ps[i]);
    list[i].g_dtype = dtype_of(gs[i], "gs");
    list[i].g = const_cast<void*>(gs[i].data());
    if (list[i].n > 0) at.push_back(list[i].p);
  }
  no_repeats(std::move(at), "ps");
  return list;
}

std::vector<StepTensor> directions(F32List& rs) {
  std::vector<StepTensor> list(rs.size());
  std::vector<const void*> at;
  for (size_t i = 0; i < rs.size(); ++i) {
    list[i].n = rs[i].size();
    list[i].target = optim::StepTarget::direction;
    list[i].g = out(rs[i]);
    if (list[i].n > 0) at.push_back(list[i].g);
  }
  no_repeats(std::move(at), "rs");
  return list;
}

template <class T>
T* state(Array<T>& a, int64_t n, const char* name) {
  check_size(a.size(), n, name);
  return out(a);
}

void f32_states(std::vector<StepTensor>& list, F32List& ms, F32List& vs) {
  check_length(ms.size(), list.size(), "ms");
  check_length(vs.size(), list.size(), "vs");
  for (size_t i = 0; i < list.size(); ++i) {
    list[i].m = state(ms[i], list[i].n, "ms");
    list[i].v = state(vs[i], list[i].n, "vs");
  }
}

void dynamic_states(std::vector<StepTensor>& list, U8List& m_codes, F32List& m_absmax,
                    U8List& v_codes, F32List& v_absmax) {
  check_length(m_codes.size(), list.size(), "m_codes");
  check_length(m_absmax.size(), list.size(), "m_absmax");
  check_length(v_codes.size(), list.size(), "v_codes");
  check_length(v_absmax.size(), list.size(), "v_absmax");
  for (size_t i = 0; i < list.size(); ++i) {
    const int64_t blocks = (list[i].n + optim::kStepBlock - 1) / optim::kStepBlock;
    list[i].states = optim::StateKind::dynamic8;
    list[i].m_codes = state(m_codes[i], list[i].n, "m_codes");
    list[i].m_absmax = state(m_absmax[i], blocks, "m_absmax");
    list[i].v_codes = state(v_codes[i], list[i].n, "v_codes");
    list[i].v_absmax = state(v_absmax[i], blocks, "v_absmax");
  }
}

int64_t run(const std::vector<StepTensor>& list, const optim::StepRule& rule, uint64_t seed,
            uint64_t step) {
  py::gil_scoped_release nogil;
  return optim::fused_step(list, rule, seed, step);
}

}  // namespace

void bind_optim(py::module_& m) {
  m.def(
      "adamw",
      [](AnyList ps, AnyList gs, F32List ms, F32List vs, double a, double s, double eps,
         double beta1, double beta2, double decay_before, double decay_after, bool stochastic,
         uint64_t seed, uint64_t step, const std::vector<uint32_t>& params) {
        const auto rule = optim::make_adam_rule(a, s, eps, beta1, beta2, decay_before, decay_after);
        auto list = weights(ps, gs, stochastic, params);
        f32_states(list, ms, vs);
        return run(list, rule, seed, step);
      },
      py::arg("ps").noconvert(), py::arg("gs").noconvert(), py::arg("ms").noconvert(),
      py::arg("vs").noconvert(), py::arg("a"), py::arg("s"), py::arg("eps"), py::arg("beta1"),
      py::arg("beta2"), py::arg("decay_before"), py::arg("decay_after"), py::arg("stochastic"),
      py::arg("seed"), py::arg("step"), py::arg("params"));
  m.def(
      "adamw8",
      [](AnyList ps, AnyList gs, U8List m_codes, F32List m_absmax, U8List v_codes, F32List v_absmax,
         double a, double s, double eps, double beta1, double beta2, double decay_before,
         double decay_after, bool stochastic, uint64_t seed, uint64_t step,
         const std::vector<uint32_t>& params) {
        const auto rule = optim::make_adam_rule(a, s, eps, beta1, beta2, decay_before, decay_after);
        auto list = weights(ps, gs, stochastic, params);
        dynamic_states(list, m_codes, m_absmax, v_codes, v_absmax);
        return run(list, rule, seed, step);
      },
      py::arg("ps").noconvert(), py::arg("gs").noconvert(), py::arg("m_codes").noconvert(),
      py::arg("m_absmax").noconvert(), py::arg("v_codes").noconvert(),
      py::arg("v_absmax").noconvert(), py::arg("a"), py::arg("s"), py::arg("eps"), py::arg("beta1"),
      py::arg("beta2"), py::arg("decay_before"), py::arg("decay_after"), py::arg("stochastic"),
      py::arg("seed"), py::arg("step"), py::arg("params"));
  m.def(
      "adam_direction",
      [](F32List rs, F32List ms, F32List vs, double a, double s, double eps, double beta1,
         double beta2) {
        const auto rule = optim::make_adam_rule(a, s, eps, beta1, beta2, 1.0, 1.0);
        auto list = directions(rs);
        f32_states(list, ms, vs);
        return run(list, rule, 0, 0);
      },
      py::arg("rs").noconvert(), py::arg("ms").noconvert(), py::arg("vs").noconvert(), py::arg("a"),
      py::arg("s"), py::arg("eps"), py::arg("beta1"), py::arg("beta2"));
  m.def(
      "adam8_direction",
      [](F32List rs, U8List m_codes, F32List m_absmax, U8List v_codes, F32List v_absmax, double a,
         double s, double eps, double beta1, double beta2) {
        const auto rule = optim::make_adam_rule(a, s, eps, beta1, beta2, 1.0, 1.0);
        auto list = directions(rs);
        dynamic_states(list, m_codes, m_absmax, v_codes, v_absmax);
        return run(list, rule, 0, 0);
      },
      py::arg("rs").noconvert(), py::arg("m_codes").noconvert(), py::arg("m_absmax").noconvert(),
      py::arg("v_codes").noconvert(), py::arg("v_absmax").noconvert(), py::arg("a"), py::arg("s"),
      py::arg("eps"), py::arg("beta1"), py::arg("beta2"));
  m.def(
      "apply_update",
      [](AnyList ps, F32List us, double alpha, double decay_before, double decay_after,
         bool stochastic, uint64_t seed, uint64_t step, const std::vector<uint32_t>& params) {
        const auto rule = optim::make_update_rule(alpha, decay_before, decay_after);
        check_length(us.size(), ps.size(), "us");
        check_length(params.size(), ps.size(), "params");
        std::vector<optim::UpdateTensor> list;
        std::vector<const void*> at;
        for (size_t i = 0; i < ps.size(); ++i) {
          check_size(us[i].size(), ps[i].size(), "us");
          optim::UpdateTensor t;
          t.n = ps[i].size();
          t.param = params[i];
          t.weight_store = weight_store(ps[i], stochastic);
          t.p = writable(ps[i]);
          t.u = us[i].data();
          list.push_back(t);
          if (list[i].n > 0) at.push_back(list[i].p);
        }
        no_repeats(std::move(at), "ps");
        py::gil_scoped_release nogil;
        optim::apply_update(list, rule, seed, step);
      },
      py::arg("ps").noconvert(), py::arg("us").noconvert(), py::arg("alpha"),
      py::arg("decay_before"), py::arg("decay_after"), py::arg("stochastic"), py::arg("seed"),
      py::arg("step"), py::arg("params"));
  m.def(
      "channel_energy",
      [](const Array<float>& x, bool columns) {
        check(x.ndim() == 2, "x", "have two dimensions");
        Array<double> energy(x.shape(columns ? 1 : 0));
        double* to = energy.mutable_data();
        py::gil_scoped_release nogil;
        optim::channel_energy(to, {x.data(), Dtype::f32, x.shape(0), x.shape(1)},
                              columns ? optim::Channels::columns : optim::Channels::rows);
        return energy;
      },
      py::arg("x").noconvert(), py::arg("columns"));
}

}  // namespace lowtide::bind
