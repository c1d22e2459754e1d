// wkv6 and wkv5: checks, allocation, dispatch.
#include "heads.h"
#include "torch_binding.h"

namespace flash_rwkv {
namespace {

struct Inputs {
  Tensor r, k, v, w, u;

  // Copies of those that the kernels cannot read as they are; to be called once they have been checked.
  void make_readable() {
    for (Tensor* tensor : {&r, &k, &v, &w, &u}) *tensor = readable_rows(*tensor);
  }
};

template <int kVersion>
constexpr const char* op_name() {
  return kVersion == 5 ? "wkv5" : "wkv6";
}

template <int kVersion>
Wkv6Params check_inputs(const Checker& check, const HeadSizes& sizes, Inputs& in, int64_t decay) {
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
  in.make_readable();

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

void check_chunk_gradients(const Checker& check, const DeviceKernels& kernels, const HeadSizes& sizes,
                           const Tensor& r) {
  if (!kernels.has_wkv6_chunk_gradients(sizes.size, sizes.call(r)))
    check.fail(
        "algorithm 'chunk' has gradients for head size 64 and, on devices with 154 KiB of shared memory a block, "
        "128; expected 'auto' or 'recurrent', got 'chunk' for " +
        std::to_string(sizes.size) + " on cuda:" + std::to_string(r.get_device_index()));
}

// What chunks save is only ever an operand of the tensor cores.
std::optional<ScalarType> saved_dtype(bool chunks) {
  return chunks ? std::optional(ScalarType::BFloat16) : std::nullopt;
}

template <int kVersion>
Outputs forward(bool chunks, Tensor r, Tensor k, Tensor v, Tensor w, Tensor u, OptionalTensor state,
                OptionalTensor cu_seqlens, int64_t decay, bool save) {
  const DeviceKernels& kernels = kernels_of(r);
  const Checker check(op_name<kVersion>(), "r", r);
  const HeadSizes sizes(check, "r", r, false);
  if (chunks) check_chunks(check, kernels, sizes, r);
  if (chunks && save) check_chunk_gradients(check, kernels, sizes, r);
  Inputs in = {r, k, v, w, u};
  Wkv6Params p = check_inputs<kVersion>(check, sizes, in, decay);
  OptionalTensor packed;
  if (cu_seqlens) packed = check.cu_seqlens(*cu_seqlens, sizes.batch, sizes.tokens);
  const int64_t sequences = sizes.sequences(packed);
  if (state) check_state(check, "state", *state, sequences, sizes);

  Tensor y = allocate(r, sizes_of(r), check.dtype());
  Tensor final_state = allocate(r, {sequences, sizes.heads, sizes.size, sizes.size}, check.compute());
  p.sequences = sizes.describe(sequences, packed, kernels);
  if (chunks) p.sequences.checkpoint_tokens = kCheckpointTokens;
  const Tensor checkpoints = allocate_checkpoints(check, r, sizes, p.sequences, 0, save, saved_dtype(chunks));
  const OptionalTensor initial = readable_rows(state);
  p.state = view_state(initial);
  p.y = view_tokens(y);
  p.final_state = view_state(final_state);
  p.checkpoints = save ? checkpoints.data_ptr() : nullptr;
  const Call call = sizes.call(r);
  const Tensor scratch = allocate(r, {chunks ? kernels.wkv6_chunk_scratch_bytes(p, call) : 0}, ScalarType::Byte);
  p.summaries = scratch.data_ptr();
  (chunks ? kernels.wkv6_chunk_forward : kernels.wkv6_forward)(p, call);
  return {y, final_state, checkpoints};
}

template <int kVersion>
Wkv6Backward backward(bool chunks, Tensor r, Tensor k, Tensor v, Tensor w, Tensor u, Tensor checkpoints,
                      OptionalTensor grad_y, OptionalTensor grad_state, OptionalTensor cu_seqlens, int64_t decay) {
  const DeviceKernels& kernels = kernels_of(r);
  const Checker check(op_name<kVersion>(), "r", r);
  const HeadSizes sizes(check, "r", r, false);
  if (chunks) check_chunks(check, kernels, sizes, r);
  if (chunks) check_chunk_gradients(check, kernels, sizes, r);
  Inputs in = {r, k, v, w, u};
  Wkv6Params p = check_inputs<kVersion>(check, sizes, in, decay);
  OptionalTensor packed;
  if (cu_seqlens) packed = check.cu_seqlens(*cu_seqlens, sizes.batch, sizes.tokens);
  const int64_t sequences = sizes.sequences(packed);
  p.sequences = sizes.describe(sequences, packed, kernels);
  if (chunks) p.sequences.checkpoint_tokens = kCheckpointTokens;
  check_gradients(check, checkpoints, grad_y, grad_state, sizes, p.sequences, 0, saved_dtype(chunks));
  p.checkpoints = checkpoints.data_ptr();
  OptionalTensor readable_grad_y = readable_rows(grad_y);
  if (chunks && !grad_y) {
    Tensor zeros = allocate(r, sizes_of(r), check.dtype());
    readable_grad_y = torch::stable::zero_(zeros);
  }
  const OptionalTensor readable_grad_state = readable_rows(grad_state);
  const Call call = sizes.call(r);
  const BackwardPlan plan = (chunks ? kernels.wkv6_chunk_backward_plan : kernels.wkv6_backward_plan)(p, call);
  const Tensor scratch = allocate(r, {plan.scratch_bytes}, ScalarType::Byte);

  Tensor dr = allocate(r, sizes_of(r), check.dtype());
  Tensor dk = allocate(r, sizes_of(r), check.dtype());
  Tensor dv = allocate(r, sizes_of(r), check.dtype());
  Tensor dstate = allocate(r, {sequences, sizes.heads, sizes.size, sizes.size}, check.compute());
  const int64_t sums = chunks ? checkpoints.size(0) : plan.row_parts * sequences;
  const std::vector<int64_t> part_shape = {sums, sizes.heads, sizes.size};
  Tensor du_sum = allocate(r, part_shape, check.compute());
  Tensor dw = kVersion == 5 ? allocate(r, part_shape, check.compute()) : allocate(r, sizes_of(r), w.scalar_type());
  Wkv6Gradients g;
  g.grad_y = view_tokens(readable_grad_y);
  g.grad_final_state = view_state(readable_grad_state);
  g.dr = view_tokens(dr);
  g.dk = view_tokens(dk);
  g.dv = view_tokens(dv);
  g.dstate = view_state(dstate);
  g.scratch = scratch.data_ptr();
  g.du_sum = du_sum.data_ptr();
  if (kVersion == 5) g.dw_sum = dw.data_ptr();
  else g.dw = view_tokens(dw);
  (chunks ? kernels.wkv6_chunk_backward : kernels.wkv6_backward)(p, g, call);
  return {
      dr,    dk, dv, kVersion == 5 ? sum_sequences(dw, w.scalar_type()) : dw, sum_sequences(du_sum, u.scalar_type()),
      dstate};
}

}  // namespace

template <int kVersion>
Outputs wkv6_forward(Tensor r, Tensor k, Tensor v, Tensor w, Tensor u, OptionalTensor state, OptionalTensor cu_seqlens,
                     int64_t decay, bool save) {
  return forward<kVersion>(false, r, k, v, w, u, state, cu_seqlens, decay, save);
}

template <int kVersion>
Outputs wkv6_chunk_forward(Tensor r, Tensor k, Tensor v, Tensor w, Tensor u, OptionalTensor state,
                           OptionalTensor cu_seqlens, int64_t decay, bool save) {
  return forward<kVersion>(true, r, k, v, w, u, state, cu_seqlens, decay, save);
}

template <int kVersion>
Wkv6Backward wkv6_backward(Tensor r, Tensor k, Tensor v, Tensor w, Tensor u, Tensor checkpoints, OptionalTensor grad_y,
                           OptionalTensor grad_state, OptionalTensor cu_seqlens, int64_t decay) {
  return backward<kVersion>(false, r, k, v, w, u, checkpoints, grad_y, grad_state, cu_seqlens, decay);
}

template <int kVersion>
Wkv6Backward wkv6_chunk_backward(Tensor r, Tensor k, Tensor v, Tensor w, Tensor u, Tensor checkpoints,
                                 OptionalTensor grad_y, OptionalTensor grad_state, OptionalTensor cu_seqlens,
                                 int64_t decay) {
  return backward<kVersion>(true, r, k, v, w, u, checkpoints, grad_y, grad_state, cu_seqlens, decay);
}

template <int kVersion>
Tensor wkv6_step(Tensor r, Tensor k, Tensor v, Tensor w, Tensor u, Tensor state, OptionalTensor slots, int64_t decay) {
  const DeviceKernels& kernels = kernels_of(r);
  const Checker check(kVersion == 5 ? "wkv5_step_" : "wkv6_step_", "r", r);
  const HeadSizes sizes(check, "r", r, true);
  Inputs in = {r, k, v, w, u};
  Wkv6Params p = check_inputs<kVersion>(check, sizes, in, decay);
  const OptionalTensor rows = check_pool(check, state, slots, sizes);
  Tensor y = allocate(r, sizes_of(r), check.dtype());
  p.sequences = sizes.describe(sizes.batch, std::nullopt, kernels);
  p.num_states = state.size(0);
  p.state = p.final_state = view_state(state);
  p.slots = rows ? rows->const_data_ptr<int32_t>() : nullptr;
  p.y = view_tokens(y);
  kernels.wkv6_step(p, sizes.call(r));
  return y;
}

template Outputs wkv6_forward<5>(Tensor, Tensor, Tensor, Tensor, Tensor, OptionalTensor, OptionalTensor, int64_t, bool);
template Outputs wkv6_forward<6>(Tensor, Tensor, Tensor, Tensor, Tensor, OptionalTensor, OptionalTensor, int64_t, bool);
template Outputs wkv6_chunk_forward<5>(Tensor, Tensor, Tensor, Tensor, Tensor, OptionalTensor, OptionalTensor, int64_t,
                                       bool);
template Outputs wkv6_chunk_forward<6>(Tensor, Tensor, Tensor, Tensor, Tensor, OptionalTensor, OptionalTensor, int64_t,
                                       bool);
template Wkv6Backward wkv6_backward<5>(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, OptionalTensor, OptionalTensor,
                                       OptionalTensor, int64_t);
template Wkv6Backward wkv6_chunk_backward<5>(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, OptionalTensor,
                                             OptionalTensor, OptionalTensor, int64_t);
template Wkv6Backward wkv6_backward<6>(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, OptionalTensor, OptionalTensor,
                                       OptionalTensor, int64_t);
template Wkv6Backward wkv6_chunk_backward<6>(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, OptionalTensor,
                                             OptionalTensor, OptionalTensor, int64_t);
template Tensor wkv6_step<5>(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, OptionalTensor, int64_t);
template Tensor wkv6_step<6>(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, OptionalTensor, int64_t);

}  // namespace flash_rwkv
