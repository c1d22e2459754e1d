#pragma once

#include <cuda_runtime_api.h>

#include <cstdlib>

namespace flash_rwkv::cuda {

// Of the current device; 0 where it cannot be had. Tests set FLASH_RWKV_SHARED_KIB, for what runs on devices with so
// many KiB of shared memory a multiprocessor, of which a block may have all but one.
inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  if (cudaGetDevice(&device) == cudaSuccess) cudaDeviceGetAttribute(&value, attribute, device);
  const bool of_block = attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin;
  if (of_block || attribute == cudaDevAttrMaxSharedMemoryPerMultiprocessor) {
    if (const char* const text = std::getenv("FLASH_RWKV_SHARED_KIB")) {
      const int limit = (std::atoi(text) - of_block) << 10;
      if (limit < value) value = limit;
    }
  }
  return value;
}

// Whether the current device has the products and copies that the matrix form takes.
inline bool has_chunks() { return device_attribute(cudaDevAttrComputeCapabilityMajor) >= 8; }

}  // namespace flash_rwkv::cuda
