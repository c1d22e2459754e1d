// wkv6 and wkv5: checks, allocation, dispatch.
#include "cpu/kernels.h"
#include "heads.h"
#include "torch_binding.h"
#include "workers.h"

namespace flash_rwkv {
namespace {

struct Inputs {
  const Tensor &r, &k, &v, &w, &u;
};

template <int kVersion>
constexpr const char* op_name() {
  return kVersion == 5 ? "wkv5" : "wkv6";
}

template <int kVersion>
Wkv6Params check_inputs(const Checker& check, const HeadSizes& sizes, const Inputs& in, int64_t decay) {
  sizes.check_tokens(check, "k", in.k);
  check.same_dtype("k", in.k);
  sizes.check_tokens(check, "v", in.v);
  check.same_dtype("v", in.v);
  if (kVersion == 5) check.shape("w", in.w, {{"H", sizes.heads}, {"N", sizes.size}});
  else sizes.check_tokens(check, "w", in.w);
  check.same_or_float("w", in.w);
  check.shape("u", in.u, {{"H", sizes.heads}, {"N", sizes.size}});
  check.same_or_float("u", in.u);
  check.decay(decay);

  Wkv6Params p;
  p.num_heads = sizes.heads;
  p.head_size = sizes.size;
  p.decay = static_cast<Decay>(decay);
  p.decay_per_token = kVersion != 5;
  p.r = view_tokens(in.r);
  p.k = view_tokens(in.k);
  p.v = view_tokens(in.v);
  p.w = kVersion == 5 ? view_head_row(in.w) : view_tokens(in.w);
  p.u = view_head_row(in.u);
  return p;
}

}  // namespace

template <int kVersion>
Outputs wkv6_forward(Tensor r, Tensor k, Tensor v, Tensor w, Tensor u, OptionalTensor state, OptionalTensor cu_seqlens,
                     int64_t decay, bool save) {
  const Checker check(op_name<kVersion>(), "r", r);
  const HeadSizes sizes(check, "r", r, false);
  Wkv6Params p = check_inputs<kVersion>(check, sizes, {r, k, v, w, u}, decay);
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
  cpu::kernels().wkv6_forward(p, torch_workers(sizes.updates()));
  return {y, final_state, checkpoints};
}

template <int kVersion>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> wkv6_backward(Tensor r, Tensor k, Tensor v, Tensor w,
                                                                         Tensor u, Tensor checkpoints,
                                                                         OptionalTensor grad_y,
                                                                         OptionalTensor grad_state,
                                                                         OptionalTensor cu_seqlens, int64_t decay) {
  const Checker check(op_name<kVersion>(), "r", r);
  const HeadSizes sizes(check, "r", r, false);
  Wkv6Params p = check_inputs<kVersion>(check, sizes, {r, k, v, w, u}, decay);
  OptionalTensor packed;
  if (cu_seqlens) packed = check.cu_seqlens(*cu_seqlens, sizes.batch, sizes.tokens);
  const int64_t sequences = sizes.sequences(packed);
  check_gradients(check, checkpoints, grad_y, grad_state, sequences, packed.has_value(), sizes);
  p.sequences = sizes.describe(sequences, packed);
  p.checkpoints = checkpoints.data_ptr();

  Tensor dr = allocate(r, sizes_of(r), check.dtype());
  Tensor dk = allocate(r, sizes_of(r), check.dtype());
  Tensor dv = allocate(r, sizes_of(r), check.dtype());
  Tensor dstate = allocate(r, {sequences, sizes.heads, sizes.size, sizes.size}, check.compute());
  Tensor du_sum = allocate(r, {sequences, sizes.heads, sizes.size}, check.compute());
  Tensor dw = kVersion == 5 ? allocate(r, {sequences, sizes.heads, sizes.size}, check.compute())
                            : allocate(r, sizes_of(r), w.scalar_type());
  Wkv6Gradients g;
  g.grad_y = view_tokens(grad_y);
  g.grad_final_state = view_state(grad_state);
  g.dr = view_tokens(dr);
  g.dk = view_tokens(dk);
  g.dv = view_tokens(dv);
  g.dstate = view_state(dstate);
  g.du_sum = du_sum.data_ptr();
  if (kVersion == 5) g.dw_sum = dw.data_ptr();
  else g.dw = view_tokens(dw);
  cpu::kernels().wkv6_backward(p, g, torch_workers(sizes.updates()));
  return {
      dr,    dk, dv, kVersion == 5 ? sum_sequences(dw, w.scalar_type()) : dw, sum_sequences(du_sum, u.scalar_type()),
      dstate};
}

template <int kVersion>
Tensor wkv6_step(Tensor r, Tensor k, Tensor v, Tensor w, Tensor u, Tensor state, OptionalTensor slots, int64_t decay) {
  const Checker check(kVersion == 5 ? "wkv5_step_" : "wkv6_step_", "r", r);
  const HeadSizes sizes(check, "r", r, true);
  Wkv6Params p = check_inputs<kVersion>(check, sizes, {r, k, v, w, u}, decay);
  const OptionalTensor rows = check_pool(check, state, slots, sizes);
  Tensor y = allocate(r, sizes_of(r), check.dtype());
  p.sequences = sizes.describe(sizes.batch, std::nullopt);
  p.state = p.final_state = view_state(state);
  p.slots = rows ? rows->const_data_ptr<int32_t>() : nullptr;
  p.y = view_tokens(y);
  cpu::kernels().wkv6_forward(p, torch_workers(sizes.updates()));
  return y;
}

template Outputs wkv6_forward<5>(Tensor, Tensor, Tensor, Tensor, Tensor, OptionalTensor, OptionalTensor, int64_t, bool);
template Outputs wkv6_forward<6>(Tensor, Tensor, Tensor, Tensor, Tensor, OptionalTensor, OptionalTensor, int64_t, bool);
template std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> wkv6_backward<5>(Tensor, Tensor, Tensor, Tensor,
                                                                                     Tensor, Tensor, OptionalTensor,
                                                                                     OptionalTensor, OptionalTensor,
                                                                                     int64_t);
template std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> wkv6_backward<6>(Tensor, Tensor, Tensor, Tensor,
                                                                                     Tensor, Tensor, OptionalTensor,
                                                                                     OptionalTensor, OptionalTensor,
                                                                                     int64_t);
template Tensor wkv6_step<5>(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, OptionalTensor, int64_t);
template Tensor wkv6_step<6>(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, OptionalTensor, int64_t);

}  // namespace flash_rwkv
