// SPDX-License-Identifier: Apache-2.0
// The moments of one block of 256 elements in each store: how they are read and put back. For
// *_simd.cc files only. `moments` says how many of m, v, w the rule has.
//
// A Reader gives 32 elements at a time, a Writer takes kStep at a time; kPart elements share an
// absmax. Coded first moments are finite if Reader::sound. A rule without moments has F32States.
#pragma once
#include "optim/fused_step.h"
#include "quant/dynamic_map_simd.h"
#include "quant/map4_simd.h"

namespace lowtide::optim {
namespace {

constexpr int kBlock = static_cast<int>(kStepBlock);
constexpr int kRow = 32;
constexpr int kRowVectors = kRow / kLanes;
// Lines are asked for this many elements ahead: the hardware prefetcher loses four interleaved
// streams at this rate (8-bit Adam over memory-sized tensors: 0.85 instead of 1.14 ns a parameter).
constexpr int kAhead = 2 * kBlock;

#define LT_STATE inline __attribute__((always_inline))

template <int moments>
struct F32States {
  static constexpr int kPart = kBlock, kStep = 4 * kLanes;
  static constexpr bool kCoded = false;
  float *m, *v, *w;

  LT_STATE F32States(const StepTensor& t, int64_t block)
      : m(moments > 0 ? t.m + block * kBlock : nullptr),
        v(moments > 1 ? t.v + block * kBlock : nullptr),
        w(moments > 2 ? t.w + block * kBlock : nullptr) {}

  struct Reader {
    const F32States& s;
    LT_STATE Reader(const F32States& states, int) : s(states) {}
    static constexpr bool sound = true;
    LT_STATE void row(int at, vf32* new_m, vf32* new_v, vf32* new_w) const {
#pragma GCC unroll 2
      for (int line = at; line < at + kRow; line += 16) {
        if (moments > 0) prefetch(s.m + line, kAhead * 4);
        if (moments > 1) prefetch(s.v + line, kAhead * 4);
        if (moments > 2) prefetch(s.w + line, kAhead * 4);
      }
#pragma GCC unroll 8
      for (int i = 0; i < kRowVectors; ++i) {
        if (moments > 0) new_m[i] = load<vf32>(s.m + at + i * kLanes);
        if (moments > 1) new_v[i] = load<vf32>(s.v + at + i * kLanes);
        if (moments > 2) new_w[i] = load<vf32>(s.w + at + i * kLanes);
      }
    }
  };
  struct Writer {
    const F32States& s;
    LT_STATE Writer(const F32States& states, int, float, float, float) : s(states) {}
    LT_STATE void step(int at, const float* new_m, const float* new_v, const float* new_w) const {
#pragma GCC unroll 4
      for (int i = at; i < at + kStep; i += kLanes) {
        if (moments > 0) store(s.m + i, load<vf32>(new_m + i));
        if (moments > 1) store(s.v + i, load<vf32>(new_v + i));
        if (moments > 2) store(s.w + i, load<vf32>(new_w + i));
      }
    }
  };
};

template <int moments>
struct Dynamic8States {
  static constexpr int kPart = quant::kDynamicBlock, kStep = quant::kDynamicStep;
  static constexpr bool kCoded = true;
  static_assert(kPart == kBlock && moments > 0);
  uint8_t *m, *v, *w;
  float *m_absmax, *v_absmax, *w_absmax;

  LT_STATE Dynamic8States(const StepTensor& t, int64_t block)
      : m(t.m_codes + block * kBlock),
        v(moments > 1 ? t.v_codes + block * kBlock : nullptr),
        w(moments > 2 ? t.w_codes + block * kBlock : nullptr),
        m_absmax(t.m_absmax + block),
        v_absmax(moments > 1 ? t.v_absmax + block : nullptr),
        w_absmax(moments > 2 ? t.w_absmax + block : nullptr) {}

  struct Reader {
    const Dynamic8States& s;
    quant::DynamicDecoder<true> decode_m, decode_w;
    quant::DynamicDecoder<false> decode_v;
    bool sound;
    LT_STATE Reader(const Dynamic8States& states, int)
        : s(states),
          decode_m(*s.m_absmax),
          decode_w(moments > 2 ? *s.w_absmax : 0.0f),
          decode_v(moments > 1 ? *s.v_absmax : 0.0f),
          sound(is_finite(*s.m_absmax)) {}
    LT_STATE void row(int at, vf32* new_m, vf32* new_v, vf32* new_w) const {
      if (at % 64 == 0) {
        prefetch(s.m + at, kAhead);
        if (moments > 1) prefetch(s.v + at, kAhead);
        if (moments > 2) prefetch(s.w + at, kAhead);
      }
#pragma GCC unroll 8
      for (int i = 0; i < kRowVectors; ++i) {
        new_m[i] = decode_m(s.m + at + i * kLanes);
        if (moments > 1) new_v[i] = decode_v(s.v + at + i * kLanes);
        if (moments > 2) new_w[i] = decode_w(s.w + at + i * kLanes);
      }
    }
  };
  struct Writer {
    const Dynamic8States& s;
    float m_inverse, v_inverse, w_inverse;
    LT_STATE Writer(const Dynamic8States& states, int, float largest_m, float largest_v,
                    float largest_w)
        : s(states) {
      *s.m_absmax = quant::dynamic_absmax(largest_m);
      m_inverse = quant::dynamic_inverse(*s.m_absmax);
      if (moments > 1) *s.v_absmax = quant::dynamic_absmax(largest_v);
      v_inverse = moments > 1 ? quant::dynamic_inverse(*s.v_absmax) : 0.0f;
      if (moments > 2) *s.w_absmax = quant::dynamic_absmax(largest_w);
      w_inverse = moments > 2 ? quant::dynamic_inverse(*s.w_absmax) : 0.0f;
    }
    LT_STATE void step(int at, const float* new_m, const float* new_v, const float* new_w) const {
      quant::dynamic_encode_step<true>(
          s.m + at, m_inverse, [=](int i) __attribute__((always_inline)) {
            return load<vf32>(new_m + at + i);
          });
      if (moments > 1)
        quant::dynamic_encode_positive_step(
            s.v + at, v_inverse, [=](int i) __attribute__((always_inline)) {
              return load<vf32>(new_v + at + i);
            });
      if (moments > 2)
        quant::dynamic_encode_step<true>(
            s.w + at, w_inverse, [=](int i) __attribute__((always_inline)) {
              return load<vf32>(new_w + at + i);
            });
    }
  };
};

template <int moments>
struct Dynamic4States {
  static constexpr int kPart = quant::kMap4Block, kStep = quant::kMap4Step;
  static constexpr bool kCoded = true;
  static_assert(kBlock % kPart == 0 && kPart % kStep == 0 && kRow == quant::kMap4Pack);
  static_assert(moments > 0);
  uint8_t *m, *v, *w;
  float *m_absmax, *v_absmax, *w_absmax;

  LT_STATE Dynamic4States(const StepTensor& t, int64_t block)
      : m(t.m_codes + block * (kBlock / 2)),
        v(moments > 1 ? t.v_codes + block * (kBlock / 2) : nullptr),
        w(moments > 2 ? t.w_codes + block * (kBlock / 2) : nullptr),
        m_absmax(t.m_absmax + block * (kBlock / kPart)),
        v_absmax(moments > 1 ? t.v_absmax + block * (kBlock / kPart) : nullptr),
        w_absmax(moments > 2 ? t.w_absmax + block * (kBlock / kPart) : nullptr) {}

  struct Reader {
    const Dynamic4States& s;
    quant::Map4Decoder<true> decode_m, decode_w;
    quant::Map4Decoder<false> decode_v;
    bool sound;
    LT_STATE Reader(const Dynamic4States& states, int part)
        : s(states),
          decode_m(s.m_absmax[part]),
          decode_w(moments > 2 ? s.w_absmax[part] : 0.0f),
          decode_v(moments > 1 ? s.v_absmax[part] : 0.0f),
          sound(is_finite(s.m_absmax[part])) {}
    LT_STATE void row(int at, vf32* new_m, vf32* new_v, vf32* new_w) const {
      if (at % 128 == 0) {
        prefetch(s.m + at / 2, kAhead / 2);
        if (moments > 1) prefetch(s.v + at / 2, kAhead / 2);
        if (moments > 2) prefetch(s.w + at / 2, kAhead / 2);
      }
      decode_m(s.m + at / 2, new_m);
      if (moments > 1) decode_v(s.v + at / 2, new_v);
      if (moments > 2) decode_w(s.w + at / 2, new_w);
    }
  };
  struct Writer {
    const Dynamic4States& s;
    float m_inverse, v_inverse, w_inverse;
    LT_STATE Writer(const Dynamic4States& states, int part, float largest_m, float largest_v,
                    float largest_w)
        : s(states) {
      s.m_absmax[part] = quant::map4_absmax(largest_m);
      m_inverse = quant::map4_inverse(s.m_absmax[part], true);
      if (moments > 1) s.v_absmax[part] = quant::map4_absmax(largest_v);
      v_inverse = moments > 1 ? quant::map4_inverse(s.v_absmax[part], false) : 0.0f;
      if (moments > 2) s.w_absmax[part] = quant::map4_absmax(largest_w);
      w_inverse = moments > 2 ? quant::map4_inverse(s.w_absmax[part], true) : 0.0f;
    }
    LT_STATE void step(int at, const float* new_m, const float* new_v, const float* new_w) const {
      quant::map4_encode_step<true>(
          s.m + at / 2, m_inverse, [=](int i) __attribute__((always_inline)) {
            return load<vf32>(new_m + at + i);
          });
      if (moments > 1)
        quant::map4_encode_step<false>(
            s.v + at / 2, v_inverse, [=](int i) __attribute__((always_inline)) {
              return load<vf32>(new_v + at + i);
            });
      if (moments > 2)
        quant::map4_encode_step<true>(
            s.w + at / 2, w_inverse, [=](int i) __attribute__((always_inline)) {
              return load<vf32>(new_w + at + i);
            });
    }
  };
};

#undef LT_STATE

}  // namespace
}  // namespace lowtide::optim
