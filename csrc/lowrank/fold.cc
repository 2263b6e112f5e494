// SPDX-License-Identifier: Apache-2.0
// Reading the matrix is the limit; sums of one output row stay in L1.
#include "lowrank/fold.h"

#include <algorithm>

#include "base/error.h"
#include "base/parallel.h"
#include "lowrank/rows.h"
#include "random/stream.h"

namespace lowtide::lowrank {
namespace {

using quant::Operand;

void add_signed(float* out, const float* x, const float* sign, int64_t n) {
  for (int64_t j = 0; j < n; ++j) out[j] += sign[j] * x[j];
}

void add_signed(float* out, const float* x, float sign, int64_t n) {
  for (int64_t j = 0; j < n; ++j) out[j] += sign * x[j];
}

// Row k of X goes to buckets k % buckets and (k + turn) % buckets. The turns of the runs of
// `buckets` rows lie in [1, buckets / 2) and differ (where there are fewer runs than that): two
// rows never share both places.
struct Places {
  Floats sign;  // 2 e: of the first places, of the second ones
  int64_t buckets, start;

  Places(int64_t e, int64_t n, float scale, random::Stream stream)
      : sign(static_cast<size_t>(2 * e)), buckets(n) {
    stream.slot = 1;
    random::sample(sign.data(), 2 * e, 0, stream, random::Dist::rademacher);
    for (float& v : sign) v *= scale;
    stream.slot = 2;
    uint32_t word;
    random::words(&word, 1, 0, stream);
    start = static_cast<int64_t>(word % static_cast<uint64_t>(turns()));
  }
  int64_t turns() const { return (buckets - 1) / 2; }
  int64_t turn(int64_t run) const { return 1 + (start + run) % turns(); }
};

}  // namespace

Floats fold(const Operand& g, bool left, int64_t buckets, float scale,
            const random::Stream& stream) {
  require(buckets >= 3, "fold: at least three buckets are needed");
  const int64_t e = left ? g.cols : g.rows;
  const Places at(e, buckets, scale, stream);
  const float* first = at.sign.data();
  const float* second = first + e;
  const int64_t rows = left ? g.rows : buckets, cols = left ? buckets : g.cols;
  Floats out(static_cast<size_t>(rows * cols));
  const int64_t row_work = 2 * (left ? e : (e + buckets - 1) / buckets * g.cols);
  parallel_for(rows, 1 + (int64_t{1} << 17) / (row_work + 1), [&](int64_t begin, int64_t end) {
    Floats buffer;
    for (int64_t i = begin; i < end; ++i) {
      float* to = out.data() + i * cols;
      std::fill_n(to, cols, 0.0f);
      const float* row = left ? row_of(g, i, buffer) : nullptr;
      for (int64_t k = 0, b = 0; k < e; k += buckets, ++b) {
        const int64_t n = std::min(buckets, e - k), turn = at.turn(b);
        if (left) {
          const float* x = row + k;
          // Places turn, turn + 1, ... wrap around.
          const int64_t whole = std::min(n, buckets - turn);
          add_signed(to, x, first + k, n);
          add_signed(to + turn, x, second + k, whole);
          add_signed(to, x + whole, second + k + whole, n - whole);
          continue;
        }
        const int64_t other = (i - turn + buckets) % buckets;
        if (i < n) add_signed(to, row_of(g, k + i, buffer), first[k + i], cols);
        if (other < n) add_signed(to, row_of(g, k + other, buffer), second[k + other], cols);
      }
    }
  });
  return out;
}

}  // namespace lowtide::lowrank
