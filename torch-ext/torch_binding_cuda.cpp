// What only the CUDA backend registers. The kernels' schemas are in torch_binding.cpp.

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "cuda/self_test.h"
#include "registration.h"

// In libtorch_cuda.so; Torch's stable headers declare it only for CUDA builds of Torch.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace flash_rwkv {
namespace {

using torch::stable::Tensor;

Tensor empty_result(const Tensor& like) {
  return torch::stable::new_empty(like, {2}, torch::headeronly::ScalarType::Int);
}

cudaStream_t current_stream(int32_t device_index) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_index, &stream));
  return static_cast<cudaStream_t>(stream);
}

// Runs a small kernel on the device of `like` and returns int32 [2] there: the number of threads that
// computed the right sum (1024 on a device that executes this binary) and __CUDA_ARCH__ of the code
// that the driver chose, so that a device running PTX made for another capability can be told apart.
Tensor cuda_self_test(const Tensor& like) {
  const auto device_index = like.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device_index);
  Tensor result = empty_result(like);
  const cudaError_t error = cuda::launch_self_test(
      {.result = static_cast<int32_t*>(result.data_ptr()), .stream = current_stream(device_index)});
  STD_TORCH_CHECK(error == cudaSuccess, "cuda_self_test: this binary does not run on CUDA device ",
                  static_cast<int>(device_index), ": ", cudaGetErrorString(error));
  return result;
}

}  // namespace
}  // namespace flash_rwkv

STABLE_TORCH_LIBRARY_FRAGMENT(TORCH_EXTENSION_NAME, ops) { ops.def("cuda_self_test(Tensor like) -> Tensor"); }

STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CUDA, ops) {
  ops.impl("cuda_self_test", TORCH_BOX(&flash_rwkv::cuda_self_test));
}

STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, Meta, ops) {
  ops.impl("cuda_self_test", TORCH_BOX(&flash_rwkv::empty_result));
}
