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
  ops.def("wkv5_backward(Tensor r, Tensor k, Tensor v, Tensor w, Tensor u, Tensor checkpoints, Tensor? grad_y,"
          " Tensor? grad_state, Tensor? cu_seqlens, int decay) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  ops.def("wkv5_step_(Tensor r, Tensor k, Tensor v, Tensor w, Tensor u, Tensor(a!) state, Tensor? slots,"
          " int decay) -> Tensor");

  ops.def("wkv6_forward(Tensor r, Tensor k, Tensor v, Tensor w, Tensor u, Tensor? state, Tensor? cu_seqlens,"
          " int decay, bool save) -> (Tensor, Tensor, Tensor)");
  ops.def("wkv6_backward(Tensor r, Tensor k, Tensor v, Tensor w, Tensor u, Tensor checkpoints, Tensor? grad_y,"
          " Tensor? grad_state, Tensor? cu_seqlens, int decay) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  ops.def("wkv6_step_(Tensor r, Tensor k, Tensor v, Tensor w, Tensor u, Tensor(a!) state, Tensor? slots,"
          " int decay) -> Tensor");

  ops.def("wkv7_forward(Tensor r, Tensor w, Tensor k, Tensor v, Tensor a, Tensor b, Tensor? state,"
          " Tensor? cu_seqlens, int decay, bool save) -> (Tensor, Tensor, Tensor)");
  ops.def("wkv7_backward(Tensor r, Tensor w, Tensor k, Tensor v, Tensor a, Tensor b, Tensor checkpoints,"
          " Tensor? grad_y, Tensor? grad_state, Tensor? cu_seqlens, int decay)"
          " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  ops.def("wkv7_step_(Tensor r, Tensor w, Tensor k, Tensor v, Tensor a, Tensor b, Tensor(a!) state, Tensor? slots,"
          " int decay) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CompositeExplicitAutograd, ops) {
  ops.impl("cpu_isa", TORCH_BOX(&flash_rwkv::cpu_isa));
}

STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CPU, ops) {
  ops.impl("wkv4_forward", TORCH_BOX(&flash_rwkv::wkv4_forward));
  ops.impl("wkv4_backward", TORCH_BOX(&flash_rwkv::wkv4_backward));
  ops.impl("wkv4_step_", TORCH_BOX(&flash_rwkv::wkv4_step));
  ops.impl("wkv5_forward", TORCH_BOX(&flash_rwkv::wkv6_forward<5>));
  ops.impl("wkv5_backward", TORCH_BOX(&flash_rwkv::wkv6_backward<5>));
  ops.impl("wkv5_step_", TORCH_BOX(&flash_rwkv::wkv6_step<5>));
  ops.impl("wkv6_forward", TORCH_BOX(&flash_rwkv::wkv6_forward<6>));
  ops.impl("wkv6_backward", TORCH_BOX(&flash_rwkv::wkv6_backward<6>));
  ops.impl("wkv6_step_", TORCH_BOX(&flash_rwkv::wkv6_step<6>));
  ops.impl("wkv7_forward", TORCH_BOX(&flash_rwkv::wkv7_forward));
  ops.impl("wkv7_backward", TORCH_BOX(&flash_rwkv::wkv7_backward));
  ops.impl("wkv7_step_", TORCH_BOX(&flash_rwkv::wkv7_step));
}

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
