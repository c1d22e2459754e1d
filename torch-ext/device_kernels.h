// The kernels of a device behind one table, so that checks and allocation are written once for all devices.
#pragma once

#include "tensor_checks.h"
#include "wkv_params.h"

namespace flash_rwkv {

// Where a call runs, and how much it does.
struct Call {
  int32_t device_index;
  int64_t updates;  // of one element of a state by one token
};

// How a device takes the backward pass of an op with a matrix state.
struct BackwardPlan {
  int64_t row_parts = 1;      // into which the rows of a state are split; sums over tokens come once for each
  int64_t scratch_bytes = 0;  // of the device's memory, uninitialised
};

struct DeviceKernels {
  int64_t checkpoint_tokens;     // between two saved matrix states
  int64_t wkv7_checkpoint_rows;  // [N] rows that wkv7 saves behind each state
  void (*wkv4_forward)(const Wkv4Params&, const Call&);
  void (*wkv4_backward)(const Wkv4Params&, const Wkv4Gradients&, const Call&);
  void (*wkv4_step)(const Wkv4Params&, const Call&);
  bool (*has_chunks)(const Call&);  // nullptr: never; wkvN_chunk_forward are there only where it has
  bool (*has_wkv6_chunk_gradients)(const int64_t& head_size, const Call&);  // called only where it has chunks
  bool (*has_wkv7_chunk_gradients)(const int64_t& head_size, const Call&);
  void (*wkv6_forward)(const Wkv6Params&, const Call&);
  int64_t (*wkv6_chunk_scratch_bytes)(const Wkv6Params&, const Call&);
  void (*wkv6_chunk_forward)(const Wkv6Params&, const Call&);
  BackwardPlan (*wkv6_chunk_backward_plan)(const Wkv6Params&, const Call&);
  void (*wkv6_chunk_backward)(const Wkv6Params&, const Wkv6Gradients&, const Call&);
  BackwardPlan (*wkv6_backward_plan)(const Wkv6Params&, const Call&);
  void (*wkv6_backward)(const Wkv6Params&, const Wkv6Gradients&, const Call&);
  void (*wkv6_step)(const Wkv6Params&, const Call&);
  void (*wkv7_forward)(const Wkv7Params&, const Call&);
  void (*wkv7_chunk_forward)(const Wkv7Params&, const Call&);
  BackwardPlan (*wkv7_chunk_backward_plan)(const Wkv7Params&, const Call&);
  void (*wkv7_chunk_backward)(const Wkv7Params&, const Wkv7Gradients&, const Call&);
  BackwardPlan (*wkv7_backward_plan)(const Wkv7Params&, const Call&);
  void (*wkv7_backward)(const Wkv7Params&, const Wkv7Gradients&, const Call&);
  void (*wkv7_step)(const Wkv7Params&, const Call&);
};

// Those of the tensor's device, which the ops were registered for.
const DeviceKernels& kernels_of(const Tensor& tensor);

// Those of a CUDA device; nullptr if this build has none, or the machine has no such device.
const DeviceKernels* kernels_of_cuda(int64_t device_index);

// Defined only in builds that have them.
const DeviceKernels& cuda_device_kernels();
bool cuda_device_exists(int64_t device_index);

}  // namespace flash_rwkv
