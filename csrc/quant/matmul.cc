// SPDX-License-Identifier: Apache-2.0
// The seam: operands checked once, C cut along its longer side, private buffers per range.
//
// A range is a strip of C. It holds the packed operand of the other, shorter side (up to kHeld
// wide) and lets the operand of its own side pass in blocks, so that no thread waits for another
// and what two threads pack twice is the small operand. Chains are resumed from C, so any cut gives
// the same bits.
#include "quant/matmul.h"

#include <algorithm>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/parallel.h"
#include "quant/matmul_table.h"

namespace lowtide::quant {
namespace {

// Blocks of columns are whole panels on every ISA.
constexpr int64_t kColUnit = 32;
// Elements of a product with a vector that stay together.
constexpr int64_t kVectorUnit = 64;

constexpr auto kTables = LT_TABLES(MatmulTable, matmul);

// Pages are touched only as far as a product needs them. Panels start at cache lines: a vector that
// straddles two costs a tenth of the speed.
struct Workspace {
  static constexpr std::align_val_t kLine{64};
  struct Free {
    void operator()(float* p) const { ::operator delete[](p, kLine); }
  };
  using Buffer = std::unique_ptr<float[], Free>;
  static Buffer make(int64_t n) { return Buffer(new (kLine) float[static_cast<size_t>(n)]); }
  Buffer held = make(kHeld * kDepthStride);
  Buffer pass = make(kPassCols * kDepthStride);
};
static_assert((kHeld + kPassCols) * kDepthStride * 4 <= kMatmulWorkspace);

Workspace& workspace() {
  thread_local Workspace w;  // also in a forked child: the thread that forked keeps its own
  return w;
}

void check(const Operand& m, const char* name) {
  const auto fail = [&](const std::string& what) {
    throw Error(ErrorKind::value, std::string("matmul: ") + name + what);
  };
  if (m.rows < 0 || m.cols < 0) fail(" has a negative size");
  if (m.store == Store::f32 || m.store == Store::bf16) {
    if (m.stride < m.cols && m.rows > 1) fail(": rows overlap (the stride is below the columns)");
    return;
  }
  if (m.store < Store::int8 || m.store > Store::nf4) fail(": unknown storage");
  if (m.store == Store::nf4 && m.zero != nullptr) fail(": NF4 has no zero points");
  if (m.group < 32 || m.group % 32 != 0) fail(": group must be a positive multiple of 32");
  const GroupShape shape{m.rows, m.cols, m.group, store_bits(m.store)};
  if (m.stride != row_bytes(shape)) fail(": codes must have the packed bytes of a row");
  if (m.rows * m.cols > 0 && m.scale == nullptr) fail(": quantized operands need their scales");
}

bool overlap(const float* c, int64_t n, const Operand& m) {
  if (n == 0 || m.rows * m.cols == 0) return false;
  int64_t bytes = m.stride * m.rows;
  if (m.store == Store::f32) bytes = ((m.rows - 1) * m.stride + m.cols) * 4;
  if (m.store == Store::bf16) bytes = ((m.rows - 1) * m.stride + m.cols) * 2;
  const auto c0 = reinterpret_cast<uintptr_t>(c), m0 = reinterpret_cast<uintptr_t>(m.data);
  return c0 < m0 + static_cast<uintptr_t>(bytes) && m0 < c0 + static_cast<uintptr_t>(n) * 4;
}

// f(begin, size) over [begin, end) in even blocks of at most `most`, multiples of `unit`.
template <class F>
void for_blocks(int64_t begin, int64_t end, int64_t most, int64_t unit, const F& f) {
  const int64_t blocks = (end - begin + most - 1) / most;
  if (blocks <= 0) return;
  const int64_t even = ((end - begin + blocks - 1) / blocks + unit - 1) / unit * unit;
  for (int64_t at = begin; at < end; at += even) f(at, std::min(even, end - at));
}

// One strip of C: `held` rows (columns if by_rows) of one operand against [s0, s1) of the other.
void multiply_strip(const MatmulTable& table, const Product& p, bool by_rows, int64_t h0,
                    int64_t held, int64_t s0, int64_t s1) {
  Workspace& w = workspace();
  // A narrow operand is held over many depths at once, so that the other one is read along its
  // rows.
  const bool narrow = held <= kUnit;
  const int64_t slots = narrow ? kHeld / kUnit : 1, slot = kUnit * kDepthStride;
  const int64_t most = by_rows ? kPassRows : narrow && p.tb ? kPassFew : kPassCols;
  for (int64_t base = 0; base < p.depth; base += slots * kDepth) {
    const int64_t end = std::min(p.depth, base + slots * kDepth);
    const auto for_depths = [&](const auto& f) {
      for (int64_t k = base; k < end; k += kDepth)
        f(k, std::min(kDepth, end - k), w.held.get() + (k - base) / kDepth * slot);
    };
    for_depths([&](int64_t k, int64_t depth, float* packed) {
      (by_rows ? table.pack_b : table.pack_a)(p, {h0, held, h0, held, k, depth}, packed);
    });
    for_blocks(s0, s1, most, by_rows ? kUnit : kColUnit, [&](int64_t at, int64_t size) {
      for_depths([&](int64_t k, int64_t depth, const float* packed) {
        const Block b =
            by_rows ? Block{at, size, h0, held, k, depth} : Block{h0, held, at, size, k, depth};
        float* pass = w.pass.get();
        (by_rows ? table.pack_a : table.pack_b)(p, b, pass);
        table.multiply(p, b, by_rows ? pass : packed, by_rows ? packed : pass);
      });
    });
  }
}

// One operand is a vector, the other dense: nothing is worth packing. False if that is not so.
bool multiply_vector(const MatmulTable& table, const Product& p) {
  const bool row = p.rows == 1;  // of C: op(a) is the vector
  if (!row && p.cols != 1) return false;
  const Operand& m = row ? p.b : p.a;
  const Operand& v = row ? p.a : p.b;
  const auto plain = [](const Operand& o) {
    return o.store == Store::f32 || o.store == Store::bf16;
  };
  if (!plain(m) || !plain(v)) return false;
  std::vector<float> x(static_cast<size_t>(p.depth));
  const bool down_v = row ? p.ta : !p.tb;  // its elements lie one a row
  for (int64_t k = 0; k < p.depth; ++k)
    x[static_cast<size_t>(k)] = down_v ? operand_at(v, k, 0) : operand_at(v, 0, k);
  const VectorProduct product{m, row ? !p.tb : p.ta, x.data(), p.depth, p.c};
  const int64_t n = p.rows * p.cols, units = (n + kVectorUnit - 1) / kVectorUnit;
  parallel_for(units, 1 + (int64_t{1} << 17) / (kVectorUnit * p.depth + 1),
               [&](int64_t begin, int64_t end) {
                 table.vector(product, begin * kVectorUnit, std::min(n, end * kVectorUnit));
               });
  return true;
}

}  // namespace

void matmul(float* c, const Operand& a, bool ta, const Operand& b, bool tb) {
  check(a, "a");
  check(b, "b");
  Product p{a, b, ta, tb, ta ? a.cols : a.rows, tb ? b.rows : b.cols, ta ? a.rows : a.cols, c};
  const int64_t b_depth = tb ? b.cols : b.rows;
  if (p.depth != b_depth)
    throw Error(ErrorKind::value, "matmul: op(a) is " + std::to_string(p.rows) + " x " +
                                      std::to_string(p.depth) + " and op(b) is " +
                                      std::to_string(b_depth) + " x " + std::to_string(p.cols) +
                                      "; the inner sizes must be equal");
  if (overlap(c, p.rows * p.cols, a) || overlap(c, p.rows * p.cols, b))
    throw Error(ErrorKind::value, "matmul: out must not share memory with a or b");
  if (p.rows == 0 || p.cols == 0) return;
  if (p.depth == 0) {
    std::fill(c, c + p.rows * p.cols, 0.0f);
    return;
  }
  const auto& table = kTables.get();
  if (multiply_vector(table, p)) return;
  const bool by_rows = p.rows >= p.cols;
  const int64_t side = by_rows ? p.rows : p.cols, other = by_rows ? p.cols : p.rows;
  // At least two units a range, and enough work to pay for waking a thread (~10 us).
  const int64_t unit_work = kUnit * other * p.depth;
  const int64_t grain = std::max<int64_t>(2, (int64_t{1} << 19) / std::max<int64_t>(unit_work, 1));
  parallel_for((side + kUnit - 1) / kUnit, grain, [&](int64_t u0, int64_t u1) {
    const int64_t s0 = u0 * kUnit, s1 = std::min(side, u1 * kUnit);
    for_blocks(0, other, kHeld, by_rows ? kColUnit : kUnit, [&](int64_t h0, int64_t held) {
      multiply_strip(table, p, by_rows, h0, held, s0, s1);
    });
  });
}

}  // namespace lowtide::quant
