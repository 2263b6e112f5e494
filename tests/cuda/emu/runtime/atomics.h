// SPDX-License-Identifier: Apache-2.0
// atom and red on integers, relaxed. Floating-point atomics are refused by the translator: their
// order is not fixed.
#pragma once

#include "alu.h"

namespace lowtide::emu {

template <class T, class F>
T AtomicUpdate(T* p, F next) {
  T seen = __atomic_load_n(p, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(p, &seen, next(seen), false, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED)) {
  }
  return seen;
}
template <class T>
T AtomicAdd(T* p, T v) {
  return AtomicUpdate(p, [v](T o) { return Add(o, v); });
}
template <class T>
T AtomicMin(T* p, T v) {
  return AtomicUpdate(p, [v](T o) { return o < v ? o : v; });
}
template <class T>
T AtomicMax(T* p, T v) {
  return AtomicUpdate(p, [v](T o) { return o < v ? v : o; });
}
template <class T>
T AtomicAnd(T* p, T v) {
  return AtomicUpdate(p, [v](T o) { return static_cast<T>(o & v); });
}
template <class T>
T AtomicOr(T* p, T v) {
  return AtomicUpdate(p, [v](T o) { return static_cast<T>(o | v); });
}
template <class T>
T AtomicXor(T* p, T v) {
  return AtomicUpdate(p, [v](T o) { return static_cast<T>(o ^ v); });
}
template <class T>
T AtomicExch(T* p, T v) {
  return AtomicUpdate(p, [v](T) { return v; });
}
template <class T>
T AtomicInc(T* p, T v) {
  return AtomicUpdate(p, [v](T o) { return o >= v ? T{0} : static_cast<T>(o + 1); });
}
template <class T>
T AtomicDec(T* p, T v) {
  return AtomicUpdate(p, [v](T o) { return o == 0 || o > v ? v : static_cast<T>(o - 1); });
}
template <class T>
T AtomicCas(T* p, T compare, T v) {
  return AtomicUpdate(p, [=](T o) { return o == compare ? v : o; });
}

}  // namespace lowtide::emu
