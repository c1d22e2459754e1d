// In the place of torch-ext/device_kernels.cpp: CPU tensors go to the CUDA kernels, which run in the emulator.
#include "device_kernels.h"

#include "cpu/kernels.h"
#include "cuda/heads/device.h"
#include "cuda/kernels.h"

namespace flash_rwkv {
namespace {

// kKernel(params…, stream)
template <auto kKernel, class... Params>
void run(const Params&... params, const Call&) {
  const cudaError_t error = kKernel(params..., nullptr);
  if (error != cudaSuccess) fail("simt", cudaGetErrorString(error));
}

template <auto kSplit, class Params>
BackwardPlan plan(const Params& p, const Call&) {
  const cuda::RowSplit split = kSplit(p);
  return {split.parts, split.scratch_bytes};
}

template <auto kBytes, class Params>
BackwardPlan scratch(const Params& p, const Call&) {
  return {.scratch_bytes = kBytes(p)};
}

constexpr DeviceKernels kKernels = {
    .checkpoint_tokens = kCudaCheckpointTokens,
    .wkv7_checkpoint_rows = kCudaCheckpointTokens,
    .wkv4_forward = &run<&cuda::wkv4_forward, Wkv4Params>,
    .wkv4_backward = &run<&cuda::wkv4_backward, Wkv4Params, Wkv4Gradients>,
    .wkv4_step = &run<&cuda::wkv4_step, Wkv4Params>,
    .has_chunks = [](const Call&) { return cuda::has_chunks(); },
    .has_wkv6_chunk_gradients = [](const int64_t& size, const Call&) { return cuda::has_wkv6_chunk_gradients(size); },
    .has_wkv7_chunk_gradients = [](const int64_t& size, const Call&) { return cuda::has_wkv7_chunk_gradients(size); },
    .wkv6_forward = &run<&cuda::wkv6_forward, Wkv6Params>,
    .wkv6_chunk_scratch_bytes = [](const Wkv6Params& p, const Call&) { return cuda::wkv6_chunk_scratch_bytes(p); },
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

}  // namespace

const DeviceKernels& kernels_of(const Tensor&) { return kKernels; }
const DeviceKernels* kernels_of_cuda(int64_t) { return nullptr; }

// The binding asks for the name only.
const cpu::KernelTable& cpu::kernels() {
  static const KernelTable table = {.isa = "simt"};
  return table;
}

}  // namespace flash_rwkv
