// SPDX-License-Identifier: Apache-2.0
// Registration of kernels, <<<...>>> and its checks. The __cuda* functions are what nvcc 13 puts
// into host objects.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

#include "machine.h"
#include "memory.h"
#include "state.h"

namespace lowtide::emu {
namespace {

constexpr size_t kDefaultShared = 48 * 1024;  // without opting in
constexpr size_t kMostShared = 227 * 1024;    // sm_90, sm_100

struct Function {
  std::string name;
  const Kernel* kernel = nullptr;
  size_t dynamic_limit = 0;
};

// Host stubs register from static constructors, possibly before this file's own.
std::map<const void*, Function>& Functions() {
  static std::map<const void*, Function> functions;
  return functions;
}

struct Configuration {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
};
Configuration configuration;

void ReadEnvironmentOnce() {
  static const bool done = [] {
    const char* order = std::getenv("LT_EMU_ORDER");
    if (order != nullptr && !SetOrderFromText(order)) {
      std::fprintf(stderr,
                   "emu: LT_EMU_ORDER=%s; it takes forward, reverse, random or random:SEED\n",
                   order);
      std::abort();
    }
    return true;
  }();
  (void)done;
}

Function* Find(const void* host) {
  auto it = Functions().find(host);
  if (it == Functions().end()) return nullptr;
  Function& f = it->second;
  if (f.kernel == nullptr) {
    const char* arch = std::getenv("LT_EMU_ARCH");
    f.kernel = FindKernel(f.name.c_str(), arch != nullptr ? std::atoi(arch) : 0);
    if (f.kernel == nullptr) {
      std::fprintf(stderr, "emu: this program has no translated PTX of %s%s%s\n", f.name.c_str(),
                   arch != nullptr ? " for LT_EMU_ARCH=" : "", arch != nullptr ? arch : "");
      std::abort();
    }
    f.dynamic_limit = kDefaultShared - f.kernel->static_shared;
  }
  return &f;
}

bool ValidShape(dim3 grid, dim3 block, unsigned max_threads) {
  const uint64_t threads = static_cast<uint64_t>(block.x) * block.y * block.z;
  return threads != 0 && threads <= max_threads && block.x <= 1024 && block.y <= 1024 &&
         block.z <= 64 && grid.x != 0 && grid.y != 0 && grid.z != 0 && grid.x <= 0x7fffffffu &&
         grid.y <= 65535 && grid.z <= 65535;
}

}  // namespace
}  // namespace lowtide::emu

using lowtide::emu::Report;

extern "C" {

void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*,
                            dim3*, dim3*, int*) {
  lowtide::emu::Functions()[host].name = name;
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, CUstream_st* stream) {
  lowtide::emu::configuration = {grid, block, shared, stream};
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  const auto& c = lowtide::emu::configuration;
  *grid = c.grid;
  *block = c.block;
  *shared = c.shared;
  *static_cast<cudaStream_t*>(stream) = c.stream;
  return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void* host, dim3 grid, dim3 block, void** args, size_t shared,
                             cudaStream_t) {
  lowtide::emu::ReadEnvironmentOnce();
  lowtide::emu::Function* f = lowtide::emu::Find(host);
  if (f == nullptr) return Report(cudaErrorInvalidDeviceFunction);
  if (!lowtide::emu::ValidShape(grid, block, f->kernel->max_threads))
    return Report(cudaErrorInvalidConfiguration);
  if (shared > f->dynamic_limit) return Report(cudaErrorInvalidValue);
  lowtide::emu::DeviceMemory::Open open;
  lowtide::emu::Launch(*f->kernel, {{grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, shared},
                       args);
  return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(host));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** args,
                               size_t shared, cudaStream_t stream) {
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, args, shared, stream);
}

cudaError_t cudaFuncSetAttribute(const void* host, cudaFuncAttribute attribute, int value) {
  lowtide::emu::Function* f = lowtide::emu::Find(host);
  if (f == nullptr) return Report(cudaErrorInvalidDeviceFunction);
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 ||
      static_cast<size_t>(value) + f->kernel->static_shared > lowtide::emu::kMostShared) {
    return Report(cudaErrorInvalidValue);
  }
  f->dynamic_limit = static_cast<size_t>(value);
  return cudaSuccess;
}

}  // extern "C"
