#include "device_kernels.h"

#include "cpu/kernels.h"
#include "workers.h"

namespace flash_rwkv {
namespace {

// One entry of the table, for the instruction set of this process. A step is a forward pass over the caller's state.
template <auto kKernel, class Params>
void run(const Params& p, const Call& call) {
  (cpu::kernels().*kKernel)(p, torch_workers(call.updates));
}

template <auto kKernel, class Params, class Gradients>
void run(const Params& p, const Gradients& g, const Call& call) {
  (cpu::kernels().*kKernel)(p, g, torch_workers(call.updates));
}

template <class Params>
BackwardPlan whole_heads(const Params&, const Call&) {
  return {};
}

using Table = cpu::KernelTable;

constexpr DeviceKernels kCpuKernels = {
    .checkpoint_tokens = kCheckpointTokens,
    .wkv7_checkpoint_rows = 0,
    .wkv4_forward = &run<&Table::wkv4_forward, Wkv4Params>,
    .wkv4_backward = &run<&Table::wkv4_backward, Wkv4Params, Wkv4Gradients>,
    .wkv4_step = &run<&Table::wkv4_forward, Wkv4Params>,
    .has_chunks = nullptr,
    .has_wkv6_chunk_gradients = nullptr,
    .has_wkv7_chunk_gradients = nullptr,
    .wkv6_forward = &run<&Table::wkv6_forward, Wkv6Params>,
    .wkv6_chunk_scratch_bytes = nullptr,
    .wkv6_chunk_forward = nullptr,
    .wkv6_chunk_backward_plan = nullptr,
    .wkv6_chunk_backward = nullptr,
    .wkv6_backward_plan = &whole_heads<Wkv6Params>,
    .wkv6_backward = &run<&Table::wkv6_backward, Wkv6Params, Wkv6Gradients>,
    .wkv6_step = &run<&Table::wkv6_forward, Wkv6Params>,
    .wkv7_forward = &run<&Table::wkv7_forward, Wkv7Params>,
    .wkv7_chunk_forward = nullptr,
    .wkv7_chunk_backward_plan = nullptr,
    .wkv7_chunk_backward = nullptr,
    .wkv7_backward_plan = &whole_heads<Wkv7Params>,
    .wkv7_backward = &run<&Table::wkv7_backward, Wkv7Params, Wkv7Gradients>,
    .wkv7_step = &run<&Table::wkv7_forward, Wkv7Params>,
};

}  // namespace

const DeviceKernels& kernels_of(const Tensor& tensor) {
#if defined(CUDA_KERNEL)
  if (tensor.is_cuda()) return cuda_device_kernels();
#endif
  if (!tensor.is_cpu()) fail("flash_rwkv", "this build has no kernels for the device of the tensors");
  return kCpuKernels;
}

const DeviceKernels* kernels_of_cuda([[maybe_unused]] int64_t device_index) {
#if defined(CUDA_KERNEL)
  if (cuda_device_exists(device_index)) return &cuda_device_kernels();
#endif
  return nullptr;
}

}  // namespace flash_rwkv
