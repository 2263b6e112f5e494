// SPDX-License-Identifier: Apache-2.0
// Memory, streams, events, errors and the device description of the fake CUDA runtime.
#include <cstdlib>
#include <cstring>

#include "memory.h"
#include "state.h"

namespace lowtide::emu {
namespace {

cudaError_t last_error = cudaSuccess;

bool WholeInside(const void* p, size_t bytes) {
  return bytes == 0 || DeviceMemory::Contains(reinterpret_cast<uint64_t>(p), bytes);
}

cudaError_t Copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  const bool to_device = DeviceMemory::IsDevice(to), from_device = DeviceMemory::IsDevice(from);
  if (kind != cudaMemcpyDefault && bytes != 0) {
    const bool want_to = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    const bool want_from = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (want_to != to_device || want_from != from_device) return Report(cudaErrorInvalidValue);
  }
  if ((to_device && !WholeInside(to, bytes)) || (from_device && !WholeInside(from, bytes))) {
    return Report(cudaErrorInvalidValue);
  }
  if (bytes == 0) return cudaSuccess;
  DeviceMemory::Open open;
  std::memmove(to, from, bytes);
  return cudaSuccess;
}

cudaError_t Fill(void* p, int value, size_t bytes) {
  if (!WholeInside(p, bytes)) return Report(cudaErrorInvalidValue);
  if (bytes == 0) return cudaSuccess;
  DeviceMemory::Open open;
  std::memset(p, value, bytes);
  return cudaSuccess;
}

}  // namespace

cudaError_t Report(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

}  // namespace lowtide::emu

using lowtide::emu::DeviceMemory;
using lowtide::emu::Report;

extern "C" {

cudaError_t cudaMalloc(void** p, size_t bytes) {
  if (bytes == 0) {
    *p = nullptr;
    return cudaSuccess;
  }
  void* got = DeviceMemory::Allocate(bytes);
  if (got == nullptr) return Report(cudaErrorMemoryAllocation);
  *p = got;
  return cudaSuccess;
}
cudaError_t cudaFree(void* p) {
  return p == nullptr || DeviceMemory::Free(p) ? cudaSuccess : Report(cudaErrorInvalidValue);
}
cudaError_t cudaMallocAsync(void** p, size_t bytes, cudaStream_t) { return cudaMalloc(p, bytes); }
cudaError_t cudaFreeAsync(void* p, cudaStream_t) { return cudaFree(p); }
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  return lowtide::emu::Copy(to, from, bytes, kind);
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t) {
  return lowtide::emu::Copy(to, from, bytes, kind);
}
cudaError_t cudaMemset(void* p, int value, size_t bytes) {
  return lowtide::emu::Fill(p, value, bytes);
}
cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t) {
  return lowtide::emu::Fill(p, value, bytes);
}
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total) {
  *total = DeviceMemory::kArenaBytes;
  *free_bytes = DeviceMemory::kArenaBytes - DeviceMemory::LiveBytes();
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  *stream = static_cast<cudaStream_t>(std::malloc(1));
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  std::free(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

cudaError_t cudaGetLastError() {
  const cudaError_t e = lowtide::emu::last_error;
  lowtide::emu::last_error = cudaSuccess;
  return e;
}
cudaError_t cudaPeekAtLastError() { return lowtide::emu::last_error; }
const char* cudaGetErrorName(cudaError_t e) {
  return e == cudaSuccess ? "cudaSuccess" : "cudaError";
}
const char* cudaGetErrorString(cudaError_t e) {
  switch (e) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDeviceFunction:
      return "invalid device function";
    default:
      return "error of the emulated CUDA runtime";
  }
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  return device == 0 ? cudaSuccess : Report(cudaErrorInvalidDevice);
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = 4;
      return cudaSuccess;
    case cudaDevAttrWarpSize:
      *value = 32;
      return cudaSuccess;
    case cudaDevAttrMaxThreadsPerBlock:
      *value = 1024;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = 227 * 1024;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 8;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      return cudaSuccess;
    default:
      return Report(cudaErrorInvalidValue);
  }
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  if (device != 0) return Report(cudaErrorInvalidDevice);
  std::memset(p, 0, sizeof *p);
  std::strcpy(p->name, "lowtide PTX emulator (CPU)");
  p->major = 8;
  p->multiProcessorCount = 4;
  p->warpSize = 32;
  p->maxThreadsPerBlock = 1024;
  p->sharedMemPerBlock = 48 * 1024;
  p->sharedMemPerBlockOptin = 227 * 1024;
  p->totalGlobalMem = DeviceMemory::kArenaBytes;
  return cudaSuccess;
}

}  // extern "C"
