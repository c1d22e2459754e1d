#pragma once

#include <cuda_runtime_api.h>

namespace flash_rwkv::cuda {

// Of the current device; 0 where it cannot be had.
inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  if (cudaGetDevice(&device) == cudaSuccess) cudaDeviceGetAttribute(&value, attribute, device);
  return value;
}

// Whether the current device has the products and copies that the matrix form takes.
inline bool has_chunks() { return device_attribute(cudaDevAttrComputeCapabilityMajor) >= 8; }

}  // namespace flash_rwkv::cuda
