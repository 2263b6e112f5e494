// SPDX-License-Identifier: Apache-2.0
#include "profile.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace lowtide::emu {

bool profile_enabled = false;

namespace {

struct Totals {
  uint64_t requests = 0, lanes = 0, bytes = 0, sectors = 0, ideal_sectors = 0, bank_passes = 0;
};

struct Request {
  Space space;
  std::vector<std::pair<uint64_t, unsigned>> accesses;
};

using SiteKey = std::pair<std::string, const Site*>;  // kernel name, instruction
std::map<SiteKey, Totals> totals;
std::map<std::string, uint64_t>
    block_sectors;  // kernel name: distinct sectors read + written, block by block
std::map<std::pair<unsigned, const Site*>, unsigned> executions;  // (thread, site) in this block
std::map<std::tuple<unsigned, const Site*, unsigned>, Request>
    in_flight;  // (warp, site, n-th execution)

uint64_t CountDistinct(std::vector<uint64_t>& v) {
  std::sort(v.begin(), v.end());
  return static_cast<uint64_t>(std::unique(v.begin(), v.end()) - v.begin());
}

void WriteReport() {
  const char* path = std::getenv("LT_EMU_PROFILE");
  std::FILE* f = path != nullptr ? std::fopen(path, "w") : nullptr;
  if (f == nullptr) {
    std::fprintf(stderr, "emu: cannot write the profile %s\n", path != nullptr ? path : "");
    return;
  }
  for (const auto& [key, t] : totals) {
    const Site& s = *key.second;
    std::fprintf(f,
                 "{\"kernel\":\"%s\",\"file\":\"%s\",\"line\":%d,\"opcode\":\"%s\",\"requests\":%"
                 "llu,\"lanes\":%llu,"
                 "\"bytes\":%llu,\"sectors\":%llu,\"ideal_sectors\":%llu,\"bank_passes\":%llu}\n",
                 key.first.c_str(), s.file, s.line, s.opcode,
                 static_cast<unsigned long long>(t.requests),
                 static_cast<unsigned long long>(t.lanes), static_cast<unsigned long long>(t.bytes),
                 static_cast<unsigned long long>(t.sectors),
                 static_cast<unsigned long long>(t.ideal_sectors),
                 static_cast<unsigned long long>(t.bank_passes));
  }
  for (const auto& [kernel, sectors] : block_sectors) {
    std::fprintf(f, "{\"kernel\":\"%s\",\"block_sectors\":%llu}\n", kernel.c_str(),
                 static_cast<unsigned long long>(sectors));
  }
  std::fclose(f);
}

[[maybe_unused]] const bool started = [] {
  if (std::getenv("LT_EMU_PROFILE") == nullptr) return false;
  profile_enabled = true;
  std::atexit(WriteReport);
  return true;
}();

}  // namespace

void ProfileAccess(Space space, uint64_t address, unsigned bytes, const Site& site) {
  if (space != Space::kGlobal && space != Space::kShared) return;
  const unsigned thread = machine.current->linear;
  const unsigned n = executions[{thread, &site}]++;
  Request& r = in_flight[{thread / 32, &site, n}];
  r.space = space;
  r.accesses.emplace_back(address, bytes);
}

void ProfileEndBlock() {
  std::vector<uint64_t> read,
      written;  // by this block: what a cache that holds its working set would still move
  for (auto& [key, request] : in_flight) {
    Totals& t = totals[{machine.kernel->name, std::get<1>(key)}];
    std::vector<uint64_t> sectors;
    std::array<std::vector<uint64_t>, 32> banks;
    uint64_t bytes = 0;
    for (auto [address, n] : request.accesses) {
      bytes += n;
      for (uint64_t s = address / 32; s <= (address + n - 1) / 32; ++s) sectors.push_back(s);
      for (uint64_t w = address / 4; w <= (address + n - 1) / 4; ++w) banks[w % 32].push_back(w);
    }
    t.requests += 1;
    t.lanes += request.accesses.size();
    t.bytes += bytes;
    if (request.space == Space::kShared) {
      uint64_t passes = 0;
      for (auto& words : banks) passes = std::max(passes, CountDistinct(words));
      t.bank_passes += passes;
    } else {
      const bool store = std::get<1>(key)->opcode[0] == 's';
      (store ? written : read)
          .insert((store ? written : read).end(), sectors.begin(), sectors.end());
      t.sectors += CountDistinct(sectors);
      t.ideal_sectors += (bytes + 31) / 32;
    }
  }
  block_sectors[machine.kernel->name] += CountDistinct(read) + CountDistinct(written);
  in_flight.clear();
  executions.clear();
}

}  // namespace lowtide::emu
