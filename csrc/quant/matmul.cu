// SPDX-License-Identifier: Apache-2.0
// Matrix product over packed operands on CUDA. Bytes that must move: both operands as stored, C
// once.
//
// A block makes a tile of C. Slices of both operands, 32 deep, are read in 16-byte vectors, decoded
// on the way into shared memory and laid out there with the depth outermost, so that a thread's
// rows and columns are vectors. Every element of C is one chain of fma over k = 0, 1, ...: no split
// of the depth, no tensor cores, no order to choose.
#include "base/launch.cuh"
#include "base/vector4.cuh"
#include "quant/matmul_cuda.h"

namespace lowtide::quant::cuda {
namespace kernels {

constexpr int kMatmulThreads = 128;
constexpr int kSlice = 32;  // depth of a slice; groups are multiples of it
constexpr int kTileCols = 64;
constexpr int kPad = 4;  // keeps rows of the tiles on 16 bytes and off each other's banks

// An operand and what a thread needs to know of it once.
struct Side {
  Operand m;
  bool depth_is_column;  // element (s, k) of the product's side is stored at row s, column k
  bool vectors;          // every row starts on a 16-byte boundary
  int64_t groups;        // per stored row
  int64_t size, depth;
};

// The 16 bytes at (row, col) decoded: calls put(e, value) for 4, 8, 16 or 32 columns.
template <class Put>
__device__ __forceinline__ void decode_vector(const Side& s, int64_t row, int64_t col,
                                              const Put& put) {
  const Operand& m = s.m;
  if (m.store == Store::f32) {
    const float4 v =
        *reinterpret_cast<const float4*>(static_cast<const float*>(m.data) + row * m.stride + col);
    put(0, v.x), put(1, v.y), put(2, v.z), put(3, v.w);
    return;
  }
  if (m.store == Store::bf16) {
    const uint4 v = *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(m.data) +
                                                    row * m.stride + col);
    const uint32_t word[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      put(2 * e, bits_float(word[e] << 16));
      put(2 * e + 1, bits_float(word[e] & 0xffff0000u));
    }
    return;
  }
  const bool four_bits = store_bits(m.store) == 4;
  const uint8_t* p =
      static_cast<const uint8_t*>(m.data) + row * m.stride + (four_bits ? col / 2 : col);
  const uint4 v = *reinterpret_cast<const uint4*>(p);
  const uint32_t word[4] = {v.x, v.y, v.z, v.w};
  // A vector lies inside one group: both are aligned to 32 columns.
  const int64_t g = row * s.groups + static_cast<int64_t>(static_cast<uint32_t>(col) /
                                                          static_cast<uint32_t>(m.group));
  const float scale = m.scale[g];
  const int zero = m.zero != nullptr ? m.zero[g] : symmetric_zero(store_bits(m.store));
#pragma unroll
  for (int e = 0; e < 16; ++e) {
    const int byte = static_cast<int>(word[e / 4] >> (8 * (e % 4)) & 255u);
    if (m.store == Store::nf4) {
      put(e, nf4_level(byte & 15) * scale);
      put(e + 16, nf4_level(byte >> 4) * scale);
    } else if (four_bits) {
      put(e, decode(byte & 15, zero, scale));
      put(e + 16, decode(byte >> 4, zero, scale));
    } else {
      put(e, decode(byte, zero, scale));
    }
  }
}

// tile[k][i] = element (first + i, k0 + k) of the side, 0 beyond its edges.
template <int kRows>
__device__ __forceinline__ void load_slice(const Side& s, int64_t first, int64_t k0,
                                           float (*tile)[kRows + kPad]) {
  const Operand& m = s.m;
  const int t = static_cast<int>(threadIdx.x);
  const int64_t row0 = s.depth_is_column ? first : k0, col0 = s.depth_is_column ? k0 : first;
  auto put = [&](int row, int col, float v) {
    if (s.depth_is_column)
      tile[col][row] = v;
    else
      tile[row][col] = v;
  };
  const int rows = s.depth_is_column ? kRows : kSlice, cols = s.depth_is_column ? kSlice : kRows;
  if (s.vectors && (kRows % 32 == 0 || s.depth_is_column)) {
    const int width = m.store == Store::f32    ? 4
                      : m.store == Store::bf16 ? 8
                      : m.store == Store::int8 ? 16
                                               : 32;
    const int per_row = cols / width;
    for (int v = t; v < rows * per_row; v += kMatmulThreads) {
      const int r = v / per_row, c = v % per_row * width;
      const int64_t row = row0 + r, col = col0 + c;
      if (row < m.rows && col + width <= m.cols) {
        decode_vector(s, row, col, [&](int e, float x) { put(r, c + e, x); });
      } else {
        for (int e = 0; e < width; ++e)
          put(r, c + e, row < m.rows && col + e < m.cols ? operand_at(m, row, col + e) : 0.0f);
      }
    }
    return;
  }
  for (int v = t; v < rows * cols; v += kMatmulThreads) {
    const int r = v / cols, c = v % cols;
    const int64_t row = row0 + r, col = col0 + c;
    put(r, c, row < m.rows && col < m.cols ? operand_at(m, row, col) : 0.0f);
  }
}

// kTileRows x 64 of C a block; a thread makes kTileRows / 8 rows x 4 columns. Few rows of C:
// kTileRows = 8. Five blocks an SM leave it 96 registers; left alone, ptxas takes 48 for the small
// tile and spills.
template <int kTileRows>
__global__ void __launch_bounds__(kMatmulThreads, 5)
    matmul_tiles(float* __restrict__ c, const Side a, const Side b, int64_t tiles_across,
                 int64_t tiles, bool c_vectors) {
  constexpr int kMine = kTileRows / 8;
  __shared__ __align__(16) float as[kSlice][kTileRows + kPad];
  __shared__ __align__(16) float bs[kSlice][kTileCols + kPad];
  const int ty = static_cast<int>(threadIdx.x) / 16, tx = static_cast<int>(threadIdx.x) % 16;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t i0 = tile / tiles_across * kTileRows, j0 = tile % tiles_across * kTileCols;
    float acc[kMine][4] = {};
    for (int64_t k0 = 0; k0 < a.depth; k0 += kSlice) {
      load_slice<kTileRows>(a, i0, k0, as);
      load_slice<kTileCols>(b, j0, k0, bs);
      __syncthreads();
      auto step = [&](int k) {
        const float4 y = *reinterpret_cast<const float4*>(&bs[k][4 * tx]);
#pragma unroll
        for (int r = 0; r < kMine; ++r) {
          const float x = as[k][kMine * ty + r];
          acc[r][0] = fma_rn(x, y.x, acc[r][0]);
          acc[r][1] = fma_rn(x, y.y, acc[r][1]);
          acc[r][2] = fma_rn(x, y.z, acc[r][2]);
          acc[r][3] = fma_rn(x, y.w, acc[r][3]);
        }
      };
      if (k0 + kSlice <= a.depth) {
#pragma unroll 8
        for (int k = 0; k < kSlice; ++k) step(k);
      } else {  // not one step too many: an fma with 0 would turn a chain of -0 into +0
        for (int k = 0; k < static_cast<int>(a.depth - k0); ++k) step(k);
      }
      __syncthreads();
    }
#pragma unroll
    for (int r = 0; r < kMine; ++r) {
      const int64_t i = i0 + kMine * ty + r, j = j0 + 4 * tx;
      if (i >= a.size || j >= b.size) continue;
      float* out = c + i * b.size + j;
      if (c_vectors) {
        store_vector(out, make_float4(acc[r][0], acc[r][1], acc[r][2], acc[r][3]));
      } else {
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (j + e < b.size) out[e] = acc[r][e];
      }
    }
  }
}

}  // namespace kernels

namespace {

bool valid(const Operand& m) {
  if (m.rows < 0 || m.cols < 0 || m.cols > INT32_MAX) return false;
  if (m.store == Store::f32 || m.store == Store::bf16) return m.stride >= m.cols || m.rows <= 1;
  if (m.store < Store::int8 || m.store > Store::nf4) return false;
  if (m.store == Store::nf4 && m.zero != nullptr) return false;
  if (m.group < 32 || m.group % 32 != 0 || m.group > INT32_MAX) return false;
  if (m.stride != row_bytes(GroupShape{m.rows, m.cols, m.group, store_bits(m.store)})) return false;
  return m.rows == 0 || m.cols == 0 || m.scale != nullptr;
}

kernels::Side side_of(const Operand& m, bool depth_is_column) {
  const int64_t element = m.store == Store::f32 ? 4 : m.store == Store::bf16 ? 2 : 1;
  const bool vectors = reinterpret_cast<uint64_t>(m.data) % 16 == 0 && m.stride * element % 16 == 0;
  return {m,
          depth_is_column,
          vectors,
          (m.cols + m.group - 1) / m.group,
          depth_is_column ? m.rows : m.cols,
          depth_is_column ? m.cols : m.rows};
}

template <int kTileRows>
void launch(float* c, const kernels::Side& a, const kernels::Side& b, cudaStream_t stream) {
  const int64_t across = (b.size + kernels::kTileCols - 1) / kernels::kTileCols;
  const int64_t tiles = (a.size + kTileRows - 1) / kTileRows * across;
  const bool c_vectors = b.size % 4 == 0 && reinterpret_cast<uint64_t>(c) % 16 == 0;
  kernels::matmul_tiles<kTileRows><<<blocks_for(tiles, 1), kernels::kMatmulThreads, 0, stream>>>(
      c, a, b, across, tiles, c_vectors);
}

}  // namespace

int matmul(float* c, const Operand& a, bool ta, const Operand& b, bool tb, void* cuda_stream) {
  if (!valid(a) || !valid(b)) return static_cast<int>(cudaErrorInvalidValue);
  const kernels::Side sa = side_of(a, !ta), sb = side_of(b, tb);
  if (sa.depth != sb.depth) return static_cast<int>(cudaErrorInvalidValue);
  if (sa.size == 0 || sb.size == 0) return 0;
  if (sa.size <= 8)
    launch<8>(c, sa, sb, as_stream(cuda_stream));
  else
    launch<64>(c, sa, sb, as_stream(cuda_stream));
  return launched();
}

}  // namespace lowtide::quant::cuda
