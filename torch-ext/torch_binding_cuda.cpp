// What only the CUDA backend registers. The ops' schemas are in torch_binding.cpp, their checks in torch_wkv*.cpp.

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>

#include "cuda/heads/device.h"
#include "cuda/kernels.h"
#include "cuda/self_test.h"
#include "device_kernels.h"
#include "registration.h"
#include "torch_binding.h"

// In libtorch_cuda.so; Torch's stable headers declare it only for CUDA builds of Torch.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace flash_rwkv {
namespace {

cudaStream_t current_stream(int32_t device_index) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_index, &stream));
  return static_cast<cudaStream_t>(stream);
}

void check_launch(cudaError_t error, int32_t device_index) {
  if (error == cudaSuccess) return;
  const std::string device = "cuda:" + std::to_string(device_index);
  fail("flash_rwkv", "the kernel did not start on " + device + ": " + cudaGetErrorString(error));
}

// Makes the device of the call the current one, unless it is: which it mostly is, and a guard takes longer to make.
class OnDevice {
 public:
  explicit OnDevice(int32_t device_index) {
    if (torch::stable::accelerator::getCurrentDeviceIndex() != device_index) guard_.emplace(device_index);
  }

 private:
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
};

// kKernel(params…, stream) on the device of the call.
template <auto kKernel, class... Params>
void run(const Params&... params, const Call& call) {
  const OnDevice guard(call.device_index);
  check_launch(kKernel(params..., current_stream(call.device_index)), call.device_index);
}

template <auto kSplit, class Params>
BackwardPlan plan(const Params& p, const Call& call) {
  const OnDevice guard(call.device_index);
  const cuda::RowSplit split = kSplit(p);
  return {split.parts, split.scratch_bytes};
}

template <auto kBytes, class Params>
BackwardPlan scratch(const Params& p, const Call& call) {
  const torch::stable::accelerator::DeviceGuard guard(call.device_index);
  return {.scratch_bytes = kBytes(p)};
}

// kQuestion(params…) about the device of the call.
template <auto kQuestion, class... Params>
auto ask(const Params&... params, const Call& call) {
  const torch::stable::accelerator::DeviceGuard guard(call.device_index);
  return kQuestion(params...);
}

constexpr DeviceKernels kCudaKernels = {
    .checkpoint_tokens = kCudaCheckpointTokens,
    .wkv7_checkpoint_rows = kCudaCheckpointTokens,
    .wkv4_forward = &run<&cuda::wkv4_forward, Wkv4Params>,
    .wkv4_backward = &run<&cuda::wkv4_backward, Wkv4Params, Wkv4Gradients>,
    .wkv4_step = &run<&cuda::wkv4_step, Wkv4Params>,
    .has_chunks = &ask<&cuda::has_chunks>,
    .has_wkv6_chunk_gradients = &ask<&cuda::has_wkv6_chunk_gradients, int64_t>,
    .has_wkv7_chunk_gradients = &ask<&cuda::has_wkv7_chunk_gradients, int64_t>,
    .wkv6_forward = &run<&cuda::wkv6_forward, Wkv6Params>,
    .wkv6_chunk_scratch_bytes = &ask<&cuda::wkv6_chunk_scratch_bytes, Wkv6Params>,
    .wkv6_chunk_forward = &run<&cuda::wkv6_chunk_forward, Wkv6Params>,
    .wkv6_chunk_backward_plan = &scratch<&cuda::wkv6_chunk_backward_scratch_bytes, Wkv6Params>,
    .wkv6_chunk_backward = &run<&cuda::wkv6_chunk_backward, Wkv6Params, Wkv6Gradients>,
    .wkv6_backward_plan = &plan<&cuda::wkv6_backward_split, Wkv6Params>,
    .wkv6_backward = &run<&cuda::wkv6_backward, Wkv6Params, Wkv6Gradients>,
    .wkv6_step = &run<&cuda::wkv6_step, Wkv6Params>,
    .wkv7_forward = &run<&cuda::wkv7_forward, Wkv7Params>,
    .wkv7_chunk_forward = &run<&cuda::wkv7_chunk_forward, Wkv7Params>,
    .wkv7_chunk_backward_plan = &scratch<&cuda::wkv7_chunk_backward_scratch_bytes, Wkv7Params>,
    .wkv7_chunk_backward = &run<&cuda::wkv7_chunk_backward, Wkv7Params, Wkv7Gradients>,
    .wkv7_backward_plan = &plan<&cuda::wkv7_backward_split, Wkv7Params>,
    .wkv7_backward = &run<&cuda::wkv7_backward, Wkv7Params, Wkv7Gradients>,
    .wkv7_step = &run<&cuda::wkv7_step, Wkv7Params>,
};

Tensor empty_result(const Tensor& like) { return allocate(like, {2}, ScalarType::Int); }

// Runs a small kernel on the device of `like` and returns int32 [2] there: the number of threads that
// computed the right sum (1024 on a device that executes this binary) and __CUDA_ARCH__ of the code
// that the driver chose, so that a device running PTX made for another capability can be told apart.
Tensor cuda_self_test(const Tensor& like) {
  const auto device_index = like.get_device_index();
  const OnDevice guard(device_index);
  Tensor result = empty_result(like);
  check_launch(cuda::launch_self_test(
                   {.result = static_cast<int32_t*>(result.data_ptr()), .stream = current_stream(device_index)}),
               device_index);
  return result;
}

}  // namespace

const DeviceKernels& cuda_device_kernels() { return kCudaKernels; }

bool cuda_device_exists(int64_t device_index) {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && device_index >= 0 && device_index < count;
}

}  // namespace flash_rwkv

STABLE_TORCH_LIBRARY_FRAGMENT(TORCH_EXTENSION_NAME, ops) { ops.def("cuda_self_test(Tensor like) -> Tensor"); }

STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CUDA, ops) {
  flash_rwkv::implement(ops);
  ops.impl("cuda_self_test", TORCH_BOX(&flash_rwkv::cuda_self_test));
}

STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, Meta, ops) {
  ops.impl("cuda_self_test", TORCH_BOX(&flash_rwkv::empty_result));
}
