// SPDX-License-Identifier: Apache-2.0
#include "sync.h"

#include <algorithm>
#include <bit>

#include "sanitizers.h"

namespace lowtide::emu {
namespace {

constexpr int kBallot = -1;
constexpr int kGather = -2;

// All lanes named in the mask meet at one instruction; the last to arrive works out every
// participant's result.
uint64_t MeetWarp(uint32_t mask, uint64_t value, int source, uint64_t* gathered, const Site& site) {
  Thread* self = machine.current;
  const unsigned first = self->linear & ~31u;
  const unsigned lane = self->linear & 31u;
  const unsigned lanes = std::min(32u, machine.block_threads - first);
  Thread* warp = machine.threads + first;
  self->site = &site;
  if ((mask >> lane & 1) == 0) Fail("warp intrinsic: the calling lane is not in its mask", &site);
  if (lanes < 32 && mask >> lanes != 0) {
    // CUDA lets the full mask stand for a last, partial warp only in the sense that absent lanes do
    // not exist.
    mask &= (1u << lanes) - 1;
  }
  self->wait = Wait::kWarp;
  self->mask = mask;
  self->value = value;
  self->source = source;
  self->gathered = gathered;

  uint32_t arrived = 0, ballot = 0;
  for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
    const unsigned i = std::countr_zero(rest);
    const Thread& t = warp[i];
    if (t.done) Fail("warp intrinsic: the mask names a lane that has exited", &site);
    if (t.wait != Wait::kWarp || t.mask != mask || t.site != &site) continue;
    arrived |= 1u << i;
    ballot |= static_cast<uint32_t>(t.value != 0) << i;
  }
  if (arrived != mask) {
    Fiber::Yield();
    return self->result;
  }
  for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
    Thread& t = warp[std::countr_zero(rest)];
    if (t.source == kBallot) {
      t.result = ballot;
    } else if (t.source == kGather) {
      for (unsigned i = 0; i < lanes; ++i) t.gathered[i] = warp[i].value;
    } else {
      if ((mask >> t.source & 1) == 0)
        Fail("shuffle reads a lane that is absent or not in the mask", &site, &t);
      t.result = warp[t.source].value;
    }
  }
  for (uint32_t rest = mask; rest != 0; rest &= rest - 1)
    warp[std::countr_zero(rest)].wait = Wait::kNone;
  return self->result;
}

}  // namespace

uint64_t BlockBarrier(const Site& site, bool predicate) {
  Thread* self = machine.current;
  self->wait = Wait::kBlock;
  self->site = &site;
  self->predicate = predicate;
  char* token = machine.tokens + kTokenBytes * (self->barriers++ % kBlockTokens);
  HappensBefore(token);
  Fiber::Yield();
  HappensAfter(token);
  return self->result;
}

void WarpBarrier(uint32_t mask, const Site& site) {
  Thread* self = machine.current;
  const unsigned first = self->linear & ~31u;
  const unsigned lanes = std::min(32u, machine.block_threads - first);
  const uint32_t present = lanes < 32 ? mask & ((1u << lanes) - 1) : mask;
  self->token = nullptr;
  for (unsigned i = 0; i < lanes && self->token == nullptr;
       ++i) {  // a peer that already waits here
    const Thread& t = machine.threads[first + i];
    if (t.wait == Wait::kWarp && t.mask == present && t.site == &site) self->token = t.token;
  }
  if (self->token == nullptr) {
    self->token =
        machine.tokens + kTokenBytes * (kBlockTokens + machine.warp_barriers++ % kWarpTokens);
  }
  char* token = self->token;
  HappensBefore(token);
  MeetWarp(mask, 0, kBallot, nullptr, site);
  HappensAfter(token);
}

uint32_t Ballot(uint32_t mask, bool predicate, const Site& site) {
  return static_cast<uint32_t>(MeetWarp(mask, predicate, kBallot, nullptr, site));
}

Shuffled Shuffle(char mode, uint32_t mask, uint32_t value, uint32_t b, uint32_t clamp,
                 const Site& site) {
  const int lane = static_cast<int>(machine.current->linear & 31u);
  const int segment = static_cast<int>(clamp >> 8 & 31), limit = static_cast<int>(clamp & 31);
  const int distance = static_cast<int>(b & 31);
  const int last = (lane & segment) | (limit & ~segment);
  int source = 0;
  bool in_range = false;
  switch (mode) {
    case 'u':
      source = lane - distance;
      in_range = source >= last;
      break;
    case 'd':
      source = lane + distance;
      in_range = source <= last;
      break;
    case 'b':
      source = lane ^ distance;
      in_range = source <= last;
      break;
    default:
      source = (lane & segment) | (distance & ~segment);
      in_range = source <= last;
  }
  if (!in_range) source = lane;
  return {static_cast<uint32_t>(MeetWarp(mask, value, source, nullptr, site)), in_range};
}

uint32_t Reduce(char op, bool is_signed, uint32_t mask, uint32_t value, const Site& site) {
  uint64_t lanes[32];
  MeetWarp(mask, value, kGather, lanes, site);
  const uint32_t present = machine.current->mask;
  auto less = [&](uint32_t a, uint32_t b) {
    return is_signed ? static_cast<int32_t>(a) < static_cast<int32_t>(b) : a < b;
  };
  uint32_t r = static_cast<uint32_t>(lanes[std::countr_zero(present)]);
  for (uint32_t rest = present & (present - 1); rest != 0; rest &= rest - 1) {
    const uint32_t x = static_cast<uint32_t>(lanes[std::countr_zero(rest)]);
    switch (op) {
      case 'a':
        r += x;
        break;
      case 'm':
        r = less(x, r) ? x : r;
        break;
      case 'M':
        r = less(r, x) ? x : r;
        break;
      case '&':
        r &= x;
        break;
      case '|':
        r |= x;
        break;
      default:
        r ^= x;
    }
  }
  return r;
}

}  // namespace lowtide::emu
