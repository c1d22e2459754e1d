// wkv7: checks, allocation, dispatch.
#include "cpu/kernels.h"
#include "heads.h"
#include "torch_binding.h"
#include "workers.h"

namespace flash_rwkv {
namespace {

struct Inputs {
  const Tensor &r, &w, &k, &v, &a, &b;
};

Wkv7Params check_inputs(const Checker& check, const HeadSizes& sizes, const Inputs& in, int64_t decay) {
  sizes.check_tokens(check, "w", in.w);
  check.same_or_float("w", in.w);
  const struct {
    const char* name;
    const Tensor& tensor;
  } rest[] = {{"k", in.k}, {"v", in.v}, {"a", in.a}, {"b", in.b}};
  for (const auto& input : rest) {
    sizes.check_tokens(check, input.name, input.tensor);
    check.same_dtype(input.name, input.tensor);
  }
  check.decay(decay);

  Wkv7Params p;
  p.num_heads = sizes.heads;
  p.head_size = sizes.size;
  p.decay = static_cast<Decay>(decay);
  p.r = view_tokens(in.r);
  p.w = view_tokens(in.w);
  p.k = view_tokens(in.k);
  p.v = view_tokens(in.v);
  p.a = view_tokens(in.a);
  p.b = view_tokens(in.b);
  return p;
}

}  // namespace

Outputs wkv7_forward(Tensor r, Tensor w, Tensor k, Tensor v, Tensor a, Tensor b, OptionalTensor state,
                     OptionalTensor cu_seqlens, int64_t decay, bool save) {
  const Checker check("wkv7", "r", r);
  const HeadSizes sizes(check, "r", r, false);
  Wkv7Params p = check_inputs(check, sizes, {r, w, k, v, a, b}, decay);
  OptionalTensor packed;
  if (cu_seqlens) packed = check.cu_seqlens(*cu_seqlens, sizes.batch, sizes.tokens);
  const int64_t sequences = sizes.sequences(packed);
  if (state) check_state(check, "state", *state, sequences, sizes);

  Tensor y = allocate(r, sizes_of(r), check.dtype());
  Tensor final_state = allocate(r, {sequences, sizes.heads, sizes.size, sizes.size}, check.compute());
  const int64_t blocks = save ? sizes.checkpoint_blocks(sequences, packed.has_value()) : 0;
  Tensor checkpoints = allocate(r, {blocks, sizes.heads, sizes.size, sizes.size}, check.compute());
  p.sequences = sizes.describe(sequences, packed);
  p.state = view_state(state);
  p.y = view_tokens(y);
  p.final_state = view_state(final_state);
  p.checkpoints = save ? checkpoints.data_ptr() : nullptr;
  clear_unowned_checkpoints(checkpoints, p.sequences);
  cpu::kernels().wkv7_forward(p, torch_workers(sizes.updates()));
  return {y, final_state, checkpoints};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> wkv7_backward(
    Tensor r, Tensor w, Tensor k, Tensor v, Tensor a, Tensor b, Tensor checkpoints, OptionalTensor grad_y,
    OptionalTensor grad_state, OptionalTensor cu_seqlens, int64_t decay) {
  const Checker check("wkv7", "r", r);
  const HeadSizes sizes(check, "r", r, false);
  Wkv7Params p = check_inputs(check, sizes, {r, w, k, v, a, b}, decay);
  OptionalTensor packed;
  if (cu_seqlens) packed = check.cu_seqlens(*cu_seqlens, sizes.batch, sizes.tokens);
  const int64_t sequences = sizes.sequences(packed);
  check_gradients(check, checkpoints, grad_y, grad_state, sequences, packed.has_value(), sizes);
  p.sequences = sizes.describe(sequences, packed);
  p.checkpoints = checkpoints.data_ptr();

  Tensor dr = allocate(r, sizes_of(r), check.dtype());
  Tensor dw = allocate(r, sizes_of(r), w.scalar_type());
  Tensor dk = allocate(r, sizes_of(r), check.dtype());
  Tensor dv = allocate(r, sizes_of(r), check.dtype());
  Tensor da = allocate(r, sizes_of(r), check.dtype());
  Tensor db = allocate(r, sizes_of(r), check.dtype());
  Tensor dstate = allocate(r, {sequences, sizes.heads, sizes.size, sizes.size}, check.compute());
  Wkv7Gradients g;
  g.grad_y = view_tokens(grad_y);
  g.grad_final_state = view_state(grad_state);
  g.dr = view_tokens(dr);
  g.dw = view_tokens(dw);
  g.dk = view_tokens(dk);
  g.dv = view_tokens(dv);
  g.da = view_tokens(da);
  g.db = view_tokens(db);
  g.dstate = view_state(dstate);
  cpu::kernels().wkv7_backward(p, g, torch_workers(sizes.updates()));
  return {dr, dw, dk, dv, da, db, dstate};
}

Tensor wkv7_step(Tensor r, Tensor w, Tensor k, Tensor v, Tensor a, Tensor b, Tensor state, OptionalTensor slots,
                 int64_t decay) {
  const Checker check("wkv7_step_", "r", r);
  const HeadSizes sizes(check, "r", r, true);
  Wkv7Params p = check_inputs(check, sizes, {r, w, k, v, a, b}, decay);
  const OptionalTensor rows = check_pool(check, state, slots, sizes);
  Tensor y = allocate(r, sizes_of(r), check.dtype());
  p.sequences = sizes.describe(sizes.batch, std::nullopt);
  p.state = p.final_state = view_state(state);
  p.slots = rows ? rows->const_data_ptr<int32_t>() : nullptr;
  p.y = view_tokens(y);
  cpu::kernels().wkv7_forward(p, torch_workers(sizes.updates()));
  return y;
}

}  // namespace flash_rwkv
