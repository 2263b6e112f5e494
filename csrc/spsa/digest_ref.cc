// SPDX-License-Identifier: Apache-2.0
#include "spsa/digest_table.h"

namespace lowtide::spsa {
namespace {

uint64_t sum_ref(const void* w, int width, int64_t n, uint64_t first) {
  uint64_t sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint64_t bits = width == 4   ? static_cast<const uint32_t*>(w)[i]
                          : width == 2 ? static_cast<const uint16_t*>(w)[i]
                                       : static_cast<const uint8_t*>(w)[i];
    sum += digest_term(bits, first + static_cast<uint64_t>(i));
  }
  return sum;
}

}  // namespace

const DigestTable digest_scalar = {sum_ref};

}  // namespace lowtide::spsa
