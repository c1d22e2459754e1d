// Registers the ops. The namespace is the build's own, so that several versions live in one process.
#include "torch_binding.h"

#include <torch/csrc/stable/library.h>

#include "cpu/kernels.h"
#include "registration.h"

namespace flash_rwkv {
namespace {

// The instruction set that the CPU kernels use in this process.
std::string cpu_isa() { return cpu::kernels().isa; }

}  // namespace
}  // namespace flash_rwkv

// decay: 0 log, 1 exp, 2 sigmoid. SymInt is not part of the stable ABI, hence int.
STABLE_TORCH_LIBRARY_EXPAND(TORCH_EXTENSION_NAME, ops) {
  ops.def("cpu_isa() -> str");

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
}

STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CPU, ops) { flash_rwkv::implement(ops); }

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
