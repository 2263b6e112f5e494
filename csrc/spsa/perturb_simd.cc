// SPDX-License-Identifier: Apache-2.0
// The same bits as perturb_ref.cc. Compiled once per ISA with LT_ISA naming the table.
//
// A chunk of z is generated into the first cache level, then added: 4 generators and 18 loops of
// additions instead of 72 kernels. Meanwhile the next chunks of weights and output are on their
// way, for a generator leaves memory idle.
//
// Limits: Rademacher and lut8 run at the speed of memory. Gaussian does not: on AVX-512 a tile of
// 64 takes 100 instructions of Philox and 110 of Box-Muller on two ports, 1.6 cycles an element.
#include "random/distributions_simd.h"
#include "spsa/perturb_table.h"

#define LT_CAT_(a, b) a##b
#define LT_CAT(a, b) LT_CAT_(a, b)

namespace lowtide::spsa {
namespace {

using quant::Half;

LT_SIMD vf32 load_row(const float* p) { return load<vf32>(p); }
LT_SIMD vf32 load_row(const uint16_t* p) { return bf16_to_float(load<vu16>(p)); }
LT_SIMD vf32 load_row(const Half* p) { return half_to_float(load<vu16>(&p->bits)); }
LT_SIMD void store_row(float* p, vf32 x) { store(p, x); }
LT_SIMD void store_row(uint16_t* p, vf32 x) { store(p, float_to_bf16(x)); }
LT_SIMD void store_row(Half* p, vf32 x) { store(&p->bits, float_to_half(x)); }

LT_SIMD void prefetch_to_write(const void* p, int64_t bytes) {
  __builtin_prefetch((const void*)((uintptr_t)p + (uintptr_t)bytes), 1);
}

// Where an operand of element i lies.
template <class T>
LT_SIMD T* at(void* p, int64_t i) {
  return static_cast<T*>(p) + i;
}
template <class T>
LT_SIMD const T* at(const void* p, int64_t i) {
  return static_cast<const T*>(p) + i;
}

// Elements [i, i + n) of a tensor; z[0] belongs to element i.
typedef void (*AddChunk)(const Perturbation& t, int64_t i, const float* z, int64_t n);

template <class W, class Out, bool kMasked>
LT_SIMD void add_row(const W* w, Out* plus, Out* minus, const float* z, float scale,
                     float threshold) {
  const vf32 x = load_row(w);
  const vf32 step = scale * load<vf32>(z);
  vf32 up = x + step, down = x - step;
  if constexpr (kMasked) {
    const vi32 still = abs_f(x) > splat(threshold);
    up = still ? x : up;
    down = still ? x : down;
  }
  store_row(plus, up);
  if (minus != nullptr) store_row(minus, down);
}

template <class W, class Out, bool kMasked>
void add_chunk(const Perturbation& t, int64_t i, const float* z, int64_t n) {
  const W* w = at<W>(t.w, i);
  Out* plus = at<Out>(t.out, i);
  Out* minus = t.minus == nullptr ? nullptr : at<Out>(t.minus, i);
  int64_t j = 0;
  if (minus == nullptr)
    for (; j + kLanes <= n; j += kLanes)
      add_row<W, Out, kMasked>(w + j, plus + j, nullptr, z + j, t.scale, t.threshold);
  else
    for (; j + kLanes <= n; j += kLanes)
      add_row<W, Out, kMasked>(w + j, plus + j, minus + j, z + j, t.scale, t.threshold);
  if (j == n) return;
  W last[kLanes] = {};
  Out up[kLanes], down[kLanes];
  float zs[kLanes] = {};
  const size_t left = static_cast<size_t>(n - j);
  __builtin_memcpy(last, w + j, left * sizeof(W));
  __builtin_memcpy(zs, z + j, left * sizeof(float));
  add_row<W, Out, kMasked>(last, up, down, zs, t.scale, t.threshold);
  __builtin_memcpy(plus + j, up, left * sizeof(Out));
  if (minus != nullptr) __builtin_memcpy(minus + j, down, left * sizeof(Out));
}

template <class W, class Out>
LT_SIMD AddChunk chunk_adder(bool masked) {
  return masked ? add_chunk<W, Out, true> : add_chunk<W, Out, false>;
}
template <class W>
LT_SIMD AddChunk chunk_adder(FloatType out, bool masked) {
  if (out == FloatType::f32) return chunk_adder<W, float>(masked);
  if (out == FloatType::bf16) return chunk_adder<W, uint16_t>(masked);
  return chunk_adder<W, Half>(masked);
}
LT_SIMD AddChunk chunk_adder(const Perturbation& t) {
  const bool masked = !(t.threshold == __builtin_inff());
  if (t.w_type == FloatType::f32) return chunk_adder<float>(t.out_type, masked);
  if (t.w_type == FloatType::bf16) return chunk_adder<uint16_t>(t.out_type, masked);
  return chunk_adder<Half>(t.out_type, masked);
}

// Elements that are generated before they are added, a multiple of the distribution's tile.
template <class D>
constexpr int64_t kChunk = D::kTile > 512 ? D::kTile : 512;

template <class D>
void perturb_with(const Perturbation& t, random::Key key, int64_t begin, int64_t end) {
  const AddChunk add = chunk_adder(t);
  const int64_t width = t.w_type == FloatType::f32 ? 4 : 2;
  const int64_t out_width = t.out_type == FloatType::f32 ? 4 : 2;
  const bool apart = t.out != t.w;
  alignas(64) float z[kChunk<D>];
  for (int64_t i = begin; i < end;) {
    const int64_t left = end - i;
    const int64_t whole = kChunk<D> - (t.offset + i) % kChunk<D>;
    const int64_t n = left < whole ? left : whole;
    const char* ahead = static_cast<const char*>(t.w) + (i + n) * width;
    const char* target = static_cast<const char*>(t.out) + (i + n) * out_width;
    random::walk<D>(
        n, t.offset + i, key, t.param, random::kRoleZ,
        [&](int64_t j, vf32 v) {
          store(z + j, v);
          prefetch(ahead, j * width);
          if (apart) prefetch_to_write(target, j * out_width);
        },
        [&](int64_t j, float v) { z[j] = v; });
    add(t, i, z, n);
    i += n;
  }
}

void perturb_simd(const Perturbation& t, random::Key key, random::Dist dist, int64_t begin,
                  int64_t end) {
  random::with_dist(dist, [&](auto d) { perturb_with<decltype(d)>(t, key, begin, end); });
}

}  // namespace

extern const PerturbTable LT_CAT(perturb_, LT_ISA);
const PerturbTable LT_CAT(perturb_, LT_ISA) = {perturb_simd};

}  // namespace lowtide::spsa
