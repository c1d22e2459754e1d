// What NVRTC lacks of what nvcc has before the first line of a source.
#pragma once

#include <driver_types.h>

#define NAN __int_as_float(0x7fc00000)

// What host functions call. They are taken for the device's, and dropped: none of this ever runs.

inline cudaError_t cudaGetDevice(int*) { return cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int*, cudaDeviceAttr, int) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void*, int, size_t, cudaStream_t) { return cudaSuccess; }
template <class Function>
cudaError_t cudaFuncSetAttribute(Function*, cudaFuncAttribute, int) {
  return cudaSuccess;
}
