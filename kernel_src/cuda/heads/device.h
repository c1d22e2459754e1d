#pragma once

#include <cuda_runtime_api.h>

namespace flash_rwkv::cuda {

// Of the current device; 0 where it cannot be had.
inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  if (cudaGetDevice(&device) == cudaSuccess) cudaDeviceGetAttribute(&value, attribute, device);
  return value;
}

}  // namespace flash_rwkv::cuda
