// SPDX-License-Identifier: Apache-2.0
// Instructions of random directions and of what is done along them: 2^16 weights.
#include "counted.h"
#include "curvature/ce_rows.h"
#include "curvature/krylov.h"
#include "curvature/probe.h"
#include "curvature/vectors.h"
#include "random/stream.h"
#include "schedule_arrays.h"
#include "spsa/digest.h"
#include "spsa/perturb.h"
#include "spsa/replay.h"

namespace lowtide::counted {
namespace {

using random::Dist;
using spsa::FloatType;

constexpr int64_t kN = 1 << 16;

const Registered kSample("random.sample_gaussian", [] {
  const auto x = buffer<float>(kN);
  return [=] { random::sample(x->data(), kN, 0, {.seed = 1}, Dist::gaussian); };
});
const Registered kDotZ("random.dot_rademacher", [] {
  const auto x = values(kN);
  return [=] {
    benchmark::DoNotOptimize(random::dot(x->data(), kN, 0, {.seed = 1}, Dist::rademacher));
  };
});

std::function<void()> perturbed(Dist dist) {
  const auto w = values(kN, 0.02f), out = buffer<float>(kN);
  return [=] {
    const spsa::Perturbation t{out->data(), w->data(), FloatType::f32, FloatType::f32,
                               kN,          0,         1e-3f};
    spsa::perturb({t}, 1, 2, 3, dist);
  };
}
const Registered kPg("spsa.perturb_gaussian", [] { return perturbed(Dist::gaussian); });
const Registered kPr("spsa.perturb_rademacher", [] { return perturbed(Dist::rademacher); });

const Registered kReplay("spsa.replay_rademacher_8_steps", [] {
  const auto w = values(kN, 0.02f);
  const auto run = std::make_shared<bench::ScheduleArrays>(8, 1);
  return [=] {
    spsa::ReplayTensor t;
    t.n = kN, t.w = w->data();
    t.threshold = spsa::kNoThreshold, t.floor = -spsa::kNoThreshold;
    spsa::replay({t}, run->schedule(), Dist::rademacher);
  };
});
const Registered kDigest("spsa.digest_f32", [] {
  const auto w = values(kN);
  return [=] { benchmark::DoNotOptimize(spsa::digest(w->data(), 4, kN, 0)); };
});

const Registered kSignDot("curvature.sign_dot", [] {
  const auto x = values(kN);
  return [=] {
    double out = 0;
    curvature::sign_dot(&out, {{x->data(), Dtype::f32, kN, 0}}, {1, 2, 3});
    benchmark::DoNotOptimize(out);
  };
});
const Registered kDot("curvature.dot", [] {
  const auto x = values(kN), y = values(kN, 0.3f);
  return [=] {
    double out = 0;
    curvature::dot(&out, {{x->data(), y->data(), Dtype::f32, Dtype::f32, kN}});
    benchmark::DoNotOptimize(out);
  };
});
const Registered kProject("curvature.project_8_of_8192", [] {
  const auto q = values(8 * 8192, 0.01f), w = values(8192), c = values(8);
  const auto coefficients = buffer<double>(8);
  return [=] {
    const curvature::Basis basis{q->data(), nullptr, curvature::BasisType::f32, 8, 8192};
    curvature::project(coefficients->data(), basis, w->data(), 0.5);
  };
});
const Registered kHead("curvature.ce_product_1000_classes", [] {
  const int64_t cols = 1000, rows = 64;
  const auto z = values(rows * cols, 4.0f), u = values(rows * cols), y = buffer<float>(rows * cols);
  const auto r = buffer<float>(rows, 1.0f);
  return [=] {
    curvature::ce_product(y->data(), {z->data(), r->data(), u->data(), nullptr, rows, cols});
  };
});

}  // namespace
}  // namespace lowtide::counted
