// SPDX-License-Identifier: Apache-2.0
// The arithmetic of the DCT, for one line (V = float) or for as many as a vector has lanes: the
// definition that every target reproduces bit for bit. A complex number is two consecutive V.
// Lines never mix, so a line of zeros stays one.
#pragma once
#include "lowrank/dct_plan.h"

namespace lowtide::lowrank {

template <class V>
struct Complex {
  V r, i;
};

template <class V>
LT_HD Complex<V> at(const V* x, int64_t k) {
  return {x[2 * k], x[2 * k + 1]};
}
template <class V>
LT_HD void put(V* y, int64_t k, V r, V i) {
  y[2 * k] = r;
  y[2 * k + 1] = i;
}
// y[k] = (r + i j) (cos - sin j)
template <class V>
LT_HD void put_turned(V* y, int64_t k, V r, V i, const float* w) {
  y[2 * k] = r * w[0] + i * w[1];
  y[2 * k + 1] = i * w[0] - r * w[1];
}

// One butterfly: inputs xs complex numbers apart, outputs ys apart, output u turned by w[u - 1].
template <class V>
LT_HD void butterfly2(const V* x, int64_t xs, V* y, int64_t ys, const float* w) {
  const Complex<V> a = at(x, 0), b = at(x, xs);
  put<V>(y, 0, a.r + b.r, a.i + b.i);
  put_turned<V>(y, ys, a.r - b.r, a.i - b.i, w);
}

// Unturned outputs 0 .. 3 of four points.
template <class V>
LT_HD void fourier4(Complex<V> a, Complex<V> b, Complex<V> c, Complex<V> d, Complex<V> y[4]) {
  const Complex<V> s0 = {a.r + c.r, a.i + c.i}, s1 = {a.r - c.r, a.i - c.i};
  const Complex<V> s2 = {b.r + d.r, b.i + d.i}, s3 = {b.r - d.r, b.i - d.i};
  y[0] = {s0.r + s2.r, s0.i + s2.i};
  y[1] = {s1.r + s3.i, s1.i - s3.r};
  y[2] = {s0.r - s2.r, s0.i - s2.i};
  y[3] = {s1.r - s3.i, s1.i + s3.r};
}

template <class V>
LT_HD void butterfly4(const V* x, int64_t xs, V* y, int64_t ys, const float* w) {
  Complex<V> a[4];
  fourier4(at(x, 0), at(x, xs), at(x, 2 * xs), at(x, 3 * xs), a);
  put<V>(y, 0, a[0].r, a[0].i);
  put_turned<V>(y, ys, a[1].r, a[1].i, w);
  put_turned<V>(y, 2 * ys, a[2].r, a[2].i, w + 2);
  put_turned<V>(y, 3 * ys, a[3].r, a[3].i, w + 4);
}

template <class V>
LT_HD void butterfly8(const V* x, int64_t xs, V* y, int64_t ys, const float* w) {
  constexpr float kHalf = 0.70710678118654752440f;
  Complex<V> a[4], b[4];
  fourier4(at(x, 0), at(x, 2 * xs), at(x, 4 * xs), at(x, 6 * xs), a);
  fourier4(at(x, xs), at(x, 3 * xs), at(x, 5 * xs), at(x, 7 * xs), b);
  b[1] = {(b[1].r + b[1].i) * kHalf, (b[1].i - b[1].r) * kHalf};
  b[2] = {b[2].i, -b[2].r};
  b[3] = {(b[3].i - b[3].r) * kHalf, (b[3].r + b[3].i) * -kHalf};
  put<V>(y, 0, a[0].r + b[0].r, a[0].i + b[0].i);
  put_turned<V>(y, ys, a[1].r + b[1].r, a[1].i + b[1].i, w);
  put_turned<V>(y, 2 * ys, a[2].r + b[2].r, a[2].i + b[2].i, w + 2);
  put_turned<V>(y, 3 * ys, a[3].r + b[3].r, a[3].i + b[3].i, w + 4);
  put_turned<V>(y, 4 * ys, a[0].r - b[0].r, a[0].i - b[0].i, w + 6);
  put_turned<V>(y, 5 * ys, a[1].r - b[1].r, a[1].i - b[1].i, w + 8);
  put_turned<V>(y, 6 * ys, a[2].r - b[2].r, a[2].i - b[2].i, w + 10);
  put_turned<V>(y, 7 * ys, a[3].r - b[3].r, a[3].i - b[3].i, w + 12);
}

template <class V>
LT_HD void butterfly3(const V* x, int64_t xs, V* y, int64_t ys, const float* w) {
  constexpr float kSin = 0.86602540378443864676f;
  const Complex<V> a = at(x, 0), b = at(x, xs), c = at(x, 2 * xs);
  const Complex<V> t = {b.r + c.r, b.i + c.i};
  const Complex<V> d = {(b.r - c.r) * kSin, (b.i - c.i) * kSin};
  const Complex<V> m = {a.r - t.r * 0.5f, a.i - t.i * 0.5f};
  put<V>(y, 0, a.r + t.r, a.i + t.i);
  put_turned<V>(y, ys, m.r + d.i, m.i - d.r, w);
  put_turned<V>(y, 2 * ys, m.r - d.i, m.i + d.r, w + 2);
}

template <class V>
LT_HD void butterfly5(const V* x, int64_t xs, V* y, int64_t ys, const float* w) {
  constexpr float kC1 = 0.30901699437494742410f, kS1 = 0.95105651629515357212f;
  constexpr float kC2 = -0.80901699437494742410f, kS2 = 0.58778525229247312917f;
  const Complex<V> a = at(x, 0), b = at(x, xs), c = at(x, 2 * xs), d = at(x, 3 * xs);
  const Complex<V> e = at(x, 4 * xs);
  const Complex<V> p = {b.r + e.r, b.i + e.i}, q = {c.r + d.r, c.i + d.i};
  const Complex<V> s = {b.r - e.r, b.i - e.i}, t = {c.r - d.r, c.i - d.i};
  const Complex<V> m1 = {a.r + (p.r * kC1 + q.r * kC2), a.i + (p.i * kC1 + q.i * kC2)};
  const Complex<V> m2 = {a.r + (p.r * kC2 + q.r * kC1), a.i + (p.i * kC2 + q.i * kC1)};
  const Complex<V> n1 = {s.r * kS1 + t.r * kS2, s.i * kS1 + t.i * kS2};
  const Complex<V> n2 = {s.r * kS2 - t.r * kS1, s.i * kS2 - t.i * kS1};
  put<V>(y, 0, a.r + (p.r + q.r), a.i + (p.i + q.i));
  put_turned<V>(y, ys, m1.r + n1.i, m1.i - n1.r, w);
  put_turned<V>(y, 2 * ys, m2.r + n2.i, m2.i - n2.r, w + 2);
  put_turned<V>(y, 3 * ys, m2.r - n2.i, m2.i + n2.r, w + 4);
  put_turned<V>(y, 4 * ys, m1.r - n1.i, m1.i + n1.r, w + 6);
}

// By the definition; roots: (cos, sin) of 2 pi t / p.
template <class V>
LT_HD void butterfly_prime(int p, const float* roots, const V* x, int64_t xs, V* y, int64_t ys,
                           const float* w) {
  for (int u = 0; u < p; ++u) {
    V r = x[0], i = x[1];
    for (int t = 1, e = u; t < p; ++t, e = (e + u) % p) {
      const Complex<V> a = at(x, t * xs);
      r = r + (a.r * roots[2 * e] + a.i * roots[2 * e + 1]);
      i = i + (a.i * roots[2 * e] - a.r * roots[2 * e + 1]);
    }
    if (u == 0)
      put<V>(y, 0, r, i);
    else
      put_turned<V>(y, u * ys, r, i, w + 2 * (u - 1));
  }
}

// Butterfly number (j, q) of a stage with radix p: `groups` twiddles, `stride` butterflies each.
template <class V>
LT_HD void dct_butterfly(int p, const V* x, V* y, int64_t groups, int64_t stride, int64_t j,
                         int64_t q, const float* twiddles) {
  const V* from = x + 2 * (q + stride * j);
  V* to = y + 2 * (q + stride * p * j);
  const float* w = twiddles + 2 * j * (p - 1);
  const int64_t xs = stride * groups;
  if (p == 8)
    butterfly8(from, xs, to, stride, w);
  else if (p == 4)
    butterfly4(from, xs, to, stride, w);
  else if (p == 2)
    butterfly2(from, xs, to, stride, w);
  else if (p == 3)
    butterfly3(from, xs, to, stride, w);
  else if (p == 5)
    butterfly5(from, xs, to, stride, w);
  else
    butterfly_prime(p, twiddles + 2 * groups * (p - 1), from, xs, to, stride, w);
}

// Coefficients k and its mirror images of the transformed points z, k = 0 .. m/2 (odd n: 0 .. n-1).
template <class V>
LT_HD void dct_coefficients(const DctPlan& p, const float* table, const V* z, V* s, int64_t k) {
  const float* turn = table + p.rotate;
  if (!dct_even(p)) {
    s[k] = k == 0 ? z[0] * turn[0]
                  : (z[2 * k] + z[2 * k]) * turn[2 * k] +
                        (z[2 * k + 1] + z[2 * k + 1]) * turn[2 * k + 1];
    return;
  }
  const int64_t m = p.m, o = m - k;
  if (k == 0) {
    const V sum = z[0] + z[1], difference = z[0] - z[1];
    s[0] = sum * turn[0];
    s[m] = (difference + difference) * turn[2 * m];
    return;
  }
  const float c = table[p.unpack + 2 * k], d = table[p.unpack + 2 * k + 1];
  const Complex<V> a = at(z, k), b = at(z, o);
  const V er = a.r + b.r, ei = a.i - b.i;  // twice the even part
  const V xr = a.i + b.i, xi = b.r - a.r;  // twice the odd part
  const V tr = xr * c + xi * d, ti = xi * c - xr * d;
  const V ur = er + tr, ui = ei + ti;  // twice the spectrum at k
  const V vr = er - tr, vi = ti - ei;  // and at m - k
  s[k] = ur * turn[2 * k] + ui * turn[2 * k + 1];
  s[p.n - k] = ur * turn[2 * k + 1] - ui * turn[2 * k];
  s[o] = vr * turn[2 * o] + vi * turn[2 * o + 1];
  s[m + k] = vr * turn[2 * o + 1] - vi * turn[2 * o];
}

// The inverse of dct_coefficients, with real and imaginary parts exchanged.
template <class V>
LT_HD void dct_points(const DctPlan& p, const float* table, const V* s, V* z, int64_t k) {
  const float* turn = table + p.rotate;
  const auto spectrum = [&](int64_t at) {
    const V a = s[at], b = s[p.n - at];
    const float c = turn[2 * at], d = turn[2 * at + 1];
    return Complex<V>{a * c + b * d, a * d - b * c};
  };
  if (!dct_even(p)) {
    if (k == 0) {
      put<V>(z, 0, s[0] - s[0], s[0] * turn[0]);
      return;
    }
    const Complex<V> v = spectrum(k);
    put<V>(z, k, v.i, v.r);
    return;
  }
  const int64_t m = p.m, o = m - k;
  if (k == 0) {
    const V first = s[0] * turn[0], last = (s[m] + s[m]) * turn[2 * m];
    put<V>(z, 0, first - last, first + last);
    return;
  }
  const float c = table[p.unpack + 2 * k], d = table[p.unpack + 2 * k + 1];
  const Complex<V> a = spectrum(k), b = spectrum(o);
  const V er = a.r + b.r, ei = a.i - b.i;
  const V dr = a.r - b.r, di = a.i + b.i;
  const V xr = dr * c - di * d, xi = di * c + dr * d;
  put<V>(z, k, ei + xr, er - xi);
  put<V>(z, o, xr - ei, er + xi);
}

LT_HD int64_t dct_pairs(const DctPlan& p) { return dct_even(p) ? p.m / 2 + 1 : p.n; }

}  // namespace lowtide::lowrank
