// SPDX-License-Identifier: Apache-2.0
// Register tiles of kRows x 2 vectors over packed blocks. Per step of k a tile loads two vectors of
// B, broadcasts kRows scalars of A and issues 2 kRows fused multiply-adds into accumulators that
// never leave their registers; the multiply-add ports are the limit (16 loads for 28 FMAs with
// AVX-512). A is packed as plain rows with a constant stride, so its addresses are displacements
// and packing it is a copy; only transposed operands go through register transposes.
#include "quant/matmul_pack.h"
#include "quant/matmul_vector_simd.h"

#define LT_CAT_(a, b) a##b
#define LT_CAT(a, b) LT_CAT_(a, b)

namespace lowtide::quant {
namespace {

// 32, 16, 16 and 32 vector registers; baseline emulates the fma and is bound by that.
#if defined(__AVX512F__)
constexpr int kRows = 14;
#elif defined(__AVX2__)
constexpr int kRows = 6;
#elif defined(__x86_64__)
constexpr int kRows = 2;
#else
constexpr int kRows = 12;
#endif
constexpr int64_t kWide = 2 * kLanes;

template <int R, int V>
void tile(const float* a, const float* b, int64_t depth, float* c, int64_t ldc, bool resume) {
  vf32 acc[R][V];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) acc[i][v] = resume ? load<vf32>(c + i * ldc + v * kLanes) : vf32{};
  for (int64_t k = 0; k < depth; ++k) {
    vf32 bv[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) bv[v] = load<vf32>(b + (k * V + v) * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const vf32 av = splat(a[i * kDepthStride + k]);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) acc[i][v] = fma_rn(av, bv[v], acc[i][v]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) store(c + i * ldc + v * kLanes, acc[i][v]);
}

using Tile = void (*)(const float*, const float*, int64_t, float*, int64_t, bool);

template <int V, int... R>
struct Tiles {
  Tile of_rows[sizeof...(R)] = {tile<R, V>...};
};
#if defined(__AVX512F__)
constexpr Tiles<1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14> kNarrowTiles;
constexpr Tiles<2, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14> kWideTiles;
#elif defined(__AVX2__)
constexpr Tiles<1, 1, 2, 3, 4, 5, 6> kNarrowTiles;
constexpr Tiles<2, 1, 2, 3, 4, 5, 6> kWideTiles;
#elif defined(__x86_64__)
constexpr Tiles<1, 1, 2> kNarrowTiles;
constexpr Tiles<2, 1, 2> kWideTiles;
#else
constexpr Tiles<1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12> kNarrowTiles;
constexpr Tiles<2, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12> kWideTiles;
#endif

// Panels of kWide columns, each depth x kWide; the last is kLanes wide if that is enough.
LT_SIMD int64_t panel_width(int64_t j, int64_t cols) { return cols - j > kLanes ? kWide : kLanes; }

// Where element (row, column) of a packed block goes, and how far its rows are apart there: panels
// of columns, or all columns in one (mask 0). One type for both operands, one copy of the packers.
struct Packed {
  float* packed;
  int64_t mask, depth, stride, tail, tail_stride;
  float* at(int64_t r, int64_t c) const {
    const int64_t first = c & mask;
    return packed + first * depth + r * step(c) + (c - first);
  }
  int64_t step(int64_t c) const { return (c & mask) == tail ? tail_stride : stride; }
};

void pack_a_simd(const Product& p, const Block& b, float* packed) {
  pack(p.a, p.ta, b.i0, b.rows, b.k0, b.depth, Packed{packed, 0, 0, kDepthStride, -1, 0});
}

void pack_b_simd(const Product& p, const Block& b, float* packed) {
  const int64_t tail = (b.cols - 1) & ~(kWide - 1);
  pack(p.b, p.tb, b.k0, b.depth, b.j0, b.cols,
       Packed{packed, ~(kWide - 1), b.depth, kWide, tail, panel_width(tail, b.cols)});
}

void multiply_simd(const Product& p, const Block& b, const float* a, const float* bp) {
  const int64_t strips = (b.rows + kRows - 1) / kRows;
  const bool resume = b.k0 > 0;
  float edge[kRows * kWide];
  for (int64_t s = 0; s < strips; ++s) {
    // Even heights: a last strip of one row would waste the multiply-add latency.
    const int64_t i0 = b.rows * s / strips, rows = b.rows * (s + 1) / strips - i0;
    const float* as = a + i0 * kDepthStride;
    for (int64_t j = 0; j < b.cols; j += kWide) {
      const int64_t width = panel_width(j, b.cols);
      const int64_t cols = b.cols - j < width ? b.cols - j : width;
      const Tile run = (width == kWide ? kWideTiles.of_rows : kNarrowTiles.of_rows)[rows - 1];
      float* c = p.c + (b.i0 + i0) * p.cols + b.j0 + j;
      if (cols == width) {
        run(as, bp + j * b.depth, b.depth, c, p.cols, resume);
        continue;
      }
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t q = 0; q < width; ++q)
          edge[i * width + q] = resume && q < cols ? c[i * p.cols + q] : 0.0f;
      run(as, bp + j * b.depth, b.depth, edge, width, true);
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t q = 0; q < cols; ++q) c[i * p.cols + q] = edge[i * width + q];
    }
  }
}

}  // namespace

extern const MatmulTable LT_CAT(matmul_, LT_ISA);
const MatmulTable LT_CAT(matmul_, LT_ISA) = {pack_a_simd, pack_b_simd, multiply_simd, vector_simd};

}  // namespace lowtide::quant
