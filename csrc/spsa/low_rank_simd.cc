// SPDX-License-Identifier: Apache-2.0
// The same bits as low_rank_ref.cc: a row is walked in pieces of 256 columns that stay in L1
// through all steps. Compiled once per ISA with LT_ISA naming the table.
//
// Limits: perturbing, or one step along one direction, is bound by memory up to ranks of about 4;
// a direction costs rank + 1 fma a vector. Stochastic rounding adds seven Philox rounds for 128
// elements and a step. Without FMA hardware the chains are emulated, exact and slow.
#include "quant/group_simd.h"
#include "spsa/low_rank_table.h"
#include "spsa/masters_simd.h"

#define LT_CAT_(a, b) a##b
#define LT_CAT(a, b) LT_CAT_(a, b)

namespace lowtide::spsa {
namespace {

constexpr int64_t kPiece = 256;

// f(D{}) for the type of a master.
template <class F>
LT_SIMD void with_master(FloatType type, const F& f) {
  if (type == FloatType::f32)
    f(F32Master{});
  else if (type == FloatType::bf16)
    f(Bf16Master{});
  else
    f(HalfMaster{});
}

// n columns of a matrix of any type, and back; those behind them read as 0.
template <class Master>
LT_SIMD void load_piece(const typename Master::Element* p, int64_t n, float* x) {
  typename Master::Element part[kPiece];
  if (n < kPiece) {
    __builtin_memset(part, 0, sizeof part);
    __builtin_memcpy(part, p, static_cast<size_t>(n) * sizeof *part);
    p = part;
  }
  for (int64_t i = 0; i < n; i += kLanes) store(x + i, Master::load(p + i));
}
template <class Master, bool kNearest>
LT_SIMD void store_piece(typename Master::Element* p, int64_t n, const float* x) {
  typename Master::Element part[kPiece];
  auto* to = n < kPiece ? part : p;
  for (int64_t i = 0; i < n; i += kLanes) {
    if constexpr (kNearest)
      Master::store_nearest(to + i, load<vf32>(x + i));
    else
      Master::store(to + i, load<vf32>(x + i));
  }
  if (n < kPiece) __builtin_memcpy(p, part, static_cast<size_t>(n) * sizeof *part);
}

// V's columns [col, col + n) of one direction, whole vectors: where a row ends within one, a copy.
struct Columns {
  const float* at;
  int64_t stride;
};
LT_SIMD Columns columns(const float* vt, int64_t rank, int64_t cols, int64_t col, int64_t n,
                        float* room) {
  if (col + (n + kLanes - 1) / kLanes * kLanes <= cols) return {vt + col, cols};
  __builtin_memset(room, 0, sizeof(float) * static_cast<size_t>(kMostRank * kPiece));
  for (int64_t k = 0; k < rank; ++k)
    __builtin_memcpy(room + k * kPiece, vt + k * cols + col, static_cast<size_t>(n) * sizeof *room);
  return {room, kPiece};
}

// kRank: known to the compiler, or 0 for any.
template <int kRank>
LT_SIMD vf32 z_at(const float* u, const Columns& v, int64_t i, int64_t rank, float norm) {
  vf32 z{};
#pragma GCC unroll 4
  for (int64_t k = 0; k < (kRank > 0 ? kRank : rank); ++k)
    z = fma_rn(splat(u[k]), load<vf32>(v.at + k * v.stride + i), z);
  return z * norm;
}

template <int kRank>
void perturb_rows_of(const LowRankPerturb& p, int64_t begin, int64_t end) {
  const LowRankMatrix& m = p.m;
  alignas(64) float x[kPiece], room[kMostRank * kPiece];
  for (int64_t row = begin; row < end; ++row)
    for (int64_t col = 0; col < m.cols; col += kPiece) {
      const int64_t n = m.cols - col < kPiece ? m.cols - col : kPiece;
      const Columns v = columns(p.f.vt, m.rank, m.cols, col, n, room);
      const int64_t at = row * m.cols + col;
      with_master(p.w_type, [&](auto master) {
        using Master = decltype(master);
        load_piece<Master>(static_cast<const typename Master::Element*>(p.w) + at, n, x);
      });
      for (int64_t i = 0; i < n; i += kLanes)
        store(x + i, load<vf32>(x + i) +
                         splat(p.scale) * z_at<kRank>(p.f.u + row * m.rank, v, i, m.rank, p.norm));
      with_master(p.out_type, [&](auto master) {
        using Master = decltype(master);
        store_piece<Master, true>(static_cast<typename Master::Element*>(p.out) + at, n, x);
      });
    }
}

template <int kRank, class Master>
void replay_rows_of(const LowRankReplay& p, int64_t begin, int64_t end) {
  const LowRankMatrix& m = p.m;
  auto* const base = static_cast<typename Master::Element*>(p.w);
  alignas(64) float x[kPiece], acc[kPiece], room[kMostRank * kPiece];
  for (int64_t row = begin; row < end; ++row)
    for (int64_t col = 0; col < m.cols; col += kPiece) {
      const int64_t n = m.cols - col < kPiece ? m.cols - col : kPiece, at = row * m.cols + col;
      const auto e = static_cast<uint64_t>(m.first_row * m.cols + at);
      load_piece<Master>(base + at, n, x);
      for (int64_t k = 0; k < p.count; ++k) {
        const Step& step = p.steps[k];
        for (int64_t i = 0; i < n; i += kLanes) store(acc + i, vf32{});
        for (int64_t d = step.begin; d < step.end; ++d) {
          const Columns v = columns(p.f.vt + d * m.rank * m.cols, m.rank, m.cols, col, n, room);
          const float* u = p.f.u + (d * m.rows + row) * m.rank;
          const vf32 c = splat(p.directions[d].coeff * p.scale);
          for (int64_t i = 0; i < n; i += kLanes)
            store(acc + i, fma_rn(c, z_at<kRank>(u, v, i, m.rank, p.norm), load<vf32>(acc + i)));
        }
        for (int64_t i = 0; i < n; i += kLanes)
          store(x + i, load<vf32>(x + i) * step.decay + load<vf32>(acc + i));
        if constexpr (Master::kRounds) {
          quant::Noise noise(step.round, m.param, random::kRoleWeightSr);
          noise.cover(e, n);
          for (int64_t i = 0; i < n; i += quant::kBlock) {
            vi32 r16[quant::kVecs];
            noise.block(i, r16);
            for (int w = 0; w < quant::kVecs; ++w) {
              float* to = x + i + w * kLanes;
              store(to, Master::rounded(load<vf32>(to), (vu32)r16[w]));
            }
          }
        }
      }
      store_piece<Master, false>(base + at, n, x);
    }
}

// f(Rank{}) with the rank where it is a common one.
template <int kRank>
struct Rank {
  static constexpr int value = kRank;
};
template <class F>
LT_SIMD void with_rank(int64_t rank, const F& f) {
  switch (rank) {
    case 1:
      return f(Rank<1>{});
    case 2:
      return f(Rank<2>{});
    case 4:
      return f(Rank<4>{});
    default:
      return f(Rank<0>{});
  }
}

void perturb_rows(const LowRankPerturb& p, int64_t begin, int64_t end) {
  with_rank(p.m.rank, [&](auto rank) { perturb_rows_of<decltype(rank)::value>(p, begin, end); });
}

void replay_rows(const LowRankReplay& p, int64_t begin, int64_t end) {
  with_rank(p.m.rank, [&](auto rank) {
    with_master(p.type, [&](auto master) {
      replay_rows_of<decltype(rank)::value, decltype(master)>(p, begin, end);
    });
  });
}

}  // namespace

extern const LowRankTable LT_CAT(low_rank_, LT_ISA);
const LowRankTable LT_CAT(low_rank_, LT_ISA) = {perturb_rows, replay_rows};

}  // namespace lowtide::spsa
