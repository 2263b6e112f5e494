// SPDX-License-Identifier: Apache-2.0
// A digest of weights that many machines can compare: the sum over elements of a hash of (bits,
// global index), modulo 2^64. Integers only and order-free, so that shards, threads and devices
// each add up their part in any order. It finds accidents, it is no signature.
//
// Moves 1, 2 or 4 bytes an element.
#pragma once
#include <cstdint>

#include "base/hd.h"

namespace lowtide::spsa {

constexpr uint64_t kDigestStride = 0x9E3779B97F4A7C15ull;  // odd: 2^64 / golden ratio

// Stafford's variant 13 of the 64-bit finalizer of MurmurHash3, a bijection: one changed element
// always changes the sum.
LT_HD uint64_t mix64(uint64_t x) {
  x ^= x >> 30;
  x *= 0xBF58476D1CE4E5B9ull;
  x ^= x >> 27;
  x *= 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

// bits: of the element, zero-extended; index: its place in the whole flattened tensor.
LT_HD uint64_t digest_term(uint64_t bits, uint64_t index) {
  return mix64(bits + index * kDigestStride);
}

// sum of digest_term(bits of element i, offset + i) over n elements of `width` bytes, 1, 2 or 4.
uint64_t digest(const void* w, int width, int64_t n, int64_t offset);

}  // namespace lowtide::spsa
