// Registers the ops. The namespace is the build's own, so that several versions live in one process.
#include "torch_binding.h"

#include <torch/csrc/stable/library.h>

#include "cpu/kernels.h"
#include "heads.h"
#include "registration.h"

namespace flash_rwkv {
namespace {

// The instruction set that the CPU kernels use in this process.
std::string cpu_isa() { return cpu::kernels().isa; }

// Whether a CUDA device has wkvN_chunk_forward for heads of that size, `gradients`: and wkvN_chunk_backward.
bool has_chunks_on(int64_t version, int64_t head_size, int64_t device_index, bool gradients) {
  const DeviceKernels* kernels = kernels_of_cuda(device_index);
  const Call call = {.device_index = static_cast<int32_t>(device_index), .updates = 0};
  return kernels != nullptr && has_chunks(*kernels, version, head_size, gradients, call);
}

}  // namespace
}  // namespace flash_rwkv

// decay: 0 log, 1 exp, 2 sigmoid. SymInt is not part of the stable ABI, hence int.
STABLE_TORCH_LIBRARY_EXPAND(TORCH_EXTENSION_NAME, ops) {
  ops.def("cpu_isa() -> str");
  ops.def("has_chunks(int version, int head_size, int device_index, bool gradients) -> bool");

  ops.def("wkv4_forward(Tensor k, Tensor v, Tensor w, Tensor u, Tensor? state, bool save)"
          " -> (Tensor, Tensor, Tensor)");
  ops.def("wkv4_backward(Tensor k, Tensor v, Tensor w, Tensor u, Tensor checkpoints, Tensor? grad_y,"
          " Tensor? grad_state) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  ops.def("wkv4_step_(Tensor k, Tensor v, Tensor w, Tensor u, Tensor(a!) state, Tensor? slots) -> Tensor");

  ops.def("wkv5_forward(Tensor r, Tensor k, Tensor v, Tensor w, Tensor u, Tensor? state, Tensor? cu_seqlens,"
          " int decay, bool save) -> (Tensor, Tensor, Tensor)");
  ops.def("wkv5_chunk_forward(Tensor r, Tensor k, Tensor v, Tensor w, Tensor u, Tensor? state, Tensor? cu_seqlens,"
          " int decay, bool save) -> (Tensor, Tensor, Tensor)");
  ops.def("wkv5_backward(Tensor r, Tensor k, Tensor v, Tensor w, Tensor u, Tensor checkpoints, Tensor? grad_y,"
          " Tensor? grad_state, Tensor? cu_seqlens, int decay) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  ops.def("wkv5_chunk_backward(Tensor r, Tensor k, Tensor v, Tensor w, Tensor u, Tensor checkpoints, Tensor? grad_y,"
          " Tensor? grad_state, Tensor? cu_seqlens, int decay) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  ops.def("wkv5_step_(Tensor r, Tensor k, Tensor v, Tensor w, Tensor u, Tensor(a!) state, Tensor? slots,"
          " int decay) -> Tensor");

  ops.def("wkv6_forward(Tensor r, Tensor k, Tensor v, Tensor w, Tensor u, Tensor? state, Tensor? cu_seqlens,"
          " int decay, bool save) -> (Tensor, Tensor, Tensor)");
  ops.def("wkv6_chunk_forward(Tensor r, Tensor k, Tensor v, Tensor w, Tensor u, Tensor? state, Tensor? cu_seqlens,"
          " int decay, bool save) -> (Tensor, Tensor, Tensor)");
  ops.def("wkv6_backward(Tensor r, Tensor k, Tensor v, Tensor w, Tensor u, Tensor checkpoints, Tensor? grad_y,"
          " Tensor? grad_state, Tensor? cu_seqlens, int decay) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  ops.def("wkv6_chunk_backward(Tensor r, Tensor k, Tensor v, Tensor w, Tensor u, Tensor checkpoints, Tensor? grad_y,"
          " Tensor? grad_state, Tensor? cu_seqlens, int decay) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  ops.def("wkv6_step_(Tensor r, Tensor k, Tensor v, Tensor w, Tensor u, Tensor(a!) state, Tensor? slots,"
          " int decay) -> Tensor");

  ops.def("wkv7_forward(Tensor r, Tensor w, Tensor k, Tensor v, Tensor a, Tensor b, Tensor? state,"
          " Tensor? cu_seqlens, int decay, bool save) -> (Tensor, Tensor, Tensor)");
  ops.def("wkv7_chunk_forward(Tensor r, Tensor w, Tensor k, Tensor v, Tensor a, Tensor b, Tensor? state,"
          " Tensor? cu_seqlens, int decay, bool save) -> (Tensor, Tensor, Tensor)");
  ops.def("wkv7_backward(Tensor r, Tensor w, Tensor k, Tensor v, Tensor a, Tensor b, Tensor checkpoints,"
          " Tensor? grad_y, Tensor? grad_state, Tensor? cu_seqlens, int decay)"
          " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  ops.def("wkv7_chunk_backward(Tensor r, Tensor w, Tensor k, Tensor v, Tensor a, Tensor b, Tensor checkpoints,"
          " Tensor? grad_y, Tensor? grad_state, Tensor? cu_seqlens, int decay)"
          " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  ops.def("wkv7_step_(Tensor r, Tensor w, Tensor k, Tensor v, Tensor a, Tensor b, Tensor(a!) state, Tensor? slots,"
          " int decay) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CompositeExplicitAutograd, ops) {
  ops.impl("cpu_isa", TORCH_BOX(&flash_rwkv::cpu_isa));
  ops.impl("has_chunks", TORCH_BOX(&flash_rwkv::has_chunks_on));
}

STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CPU, ops) { flash_rwkv::implement(ops); }

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
