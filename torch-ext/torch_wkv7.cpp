// wkv7: checks, allocation, dispatch.
#include "heads.h"
#include "torch_binding.h"

namespace flash_rwkv {
namespace {

struct Inputs {
  Tensor r, w, k, v, a, b;

  // Copies of those that the kernels cannot read as they are; to be called once they have been checked.
  void make_readable() {
    for (Tensor* tensor : {&r, &w, &k, &v, &a, &b}) *tensor = readable_rows(*tensor);
  }
};

Wkv7Params check_inputs(const Checker& check, const HeadSizes& sizes, Inputs& in, int64_t decay) {
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
  in.make_readable();

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

void check_chunk_gradients(const Checker& check, const DeviceKernels& kernels, const HeadSizes& sizes,
                           const Tensor& r) {
  if (!kernels.has_wkv7_chunk_gradients(sizes.size, sizes.call(r)))
    check.fail(
        "algorithm 'chunk' has gradients for head size 64 and, on devices with 227 KiB of shared memory a block, "
        "128; expected 'auto' or 'recurrent', got 'chunk' for " +
        std::to_string(sizes.size) + " on cuda:" + std::to_string(r.get_device_index()));
}

Outputs forward(bool chunks, Tensor r, Tensor w, Tensor k, Tensor v, Tensor a, Tensor b, OptionalTensor state,
                OptionalTensor cu_seqlens, int64_t decay, bool save) {
  const DeviceKernels& kernels = kernels_of(r);
  const Checker check("wkv7", "r", r);
  const HeadSizes sizes(check, "r", r, false);
  if (chunks) check_chunks(check, kernels, sizes, r);
  if (chunks && save) check_chunk_gradients(check, kernels, sizes, r);
  Inputs in = {r, w, k, v, a, b};
  Wkv7Params p = check_inputs(check, sizes, in, decay);
  OptionalTensor packed;
  if (cu_seqlens) packed = check.cu_seqlens(*cu_seqlens, sizes.batch, sizes.tokens);
  const int64_t sequences = sizes.sequences(packed);
  if (state) check_state(check, "state", *state, sequences, sizes);

  Tensor y = allocate(r, sizes_of(r), check.dtype());
  Tensor final_state = allocate(r, {sequences, sizes.heads, sizes.size, sizes.size}, check.compute());
  p.sequences = sizes.describe(sequences, packed, kernels);
  if (chunks) p.sequences.checkpoint_tokens = kCheckpointTokens;
  const int64_t saved_rows = chunks ? 0 : kernels.wkv7_checkpoint_rows;
  const Tensor checkpoints = allocate_checkpoints(check, r, sizes, p.sequences, saved_rows, save);
  const OptionalTensor initial = readable_rows(state);
  p.state = view_state(initial);
  p.y = view_tokens(y);
  p.final_state = view_state(final_state);
  p.checkpoints = save ? checkpoints.data_ptr() : nullptr;
  (chunks ? kernels.wkv7_chunk_forward : kernels.wkv7_forward)(p, sizes.call(r));
  return {y, final_state, checkpoints};
}

Wkv7Backward backward(bool chunks, Tensor r, Tensor w, Tensor k, Tensor v, Tensor a, Tensor b, Tensor checkpoints,
                      OptionalTensor grad_y, OptionalTensor grad_state, OptionalTensor cu_seqlens, int64_t decay) {
  const DeviceKernels& kernels = kernels_of(r);
  const Checker check("wkv7", "r", r);
  const HeadSizes sizes(check, "r", r, false);
  if (chunks) check_chunks(check, kernels, sizes, r);
  if (chunks) check_chunk_gradients(check, kernels, sizes, r);
  Inputs in = {r, w, k, v, a, b};
  Wkv7Params p = check_inputs(check, sizes, in, decay);
  OptionalTensor packed;
  if (cu_seqlens) packed = check.cu_seqlens(*cu_seqlens, sizes.batch, sizes.tokens);
  const int64_t sequences = sizes.sequences(packed);
  p.sequences = sizes.describe(sequences, packed, kernels);
  if (chunks) p.sequences.checkpoint_tokens = kCheckpointTokens;
  const int64_t saved_rows = chunks ? 0 : kernels.wkv7_checkpoint_rows;
  check_gradients(check, checkpoints, grad_y, grad_state, sizes, p.sequences, saved_rows);
  p.checkpoints = checkpoints.data_ptr();
  const OptionalTensor readable_grad_y = readable_rows(grad_y);
  const OptionalTensor readable_grad_state = readable_rows(grad_state);
  const Call call = sizes.call(r);
  const BackwardPlan plan = (chunks ? kernels.wkv7_chunk_backward_plan : kernels.wkv7_backward_plan)(p, call);
  const Tensor scratch = allocate(r, {plan.scratch_bytes}, ScalarType::Byte);

  Tensor dr = allocate(r, sizes_of(r), check.dtype());
  Tensor dw = allocate(r, sizes_of(r), w.scalar_type());
  Tensor dk = allocate(r, sizes_of(r), check.dtype());
  Tensor dv = allocate(r, sizes_of(r), check.dtype());
  Tensor da = allocate(r, sizes_of(r), check.dtype());
  Tensor db = allocate(r, sizes_of(r), check.dtype());
  Tensor dstate = allocate(r, {sequences, sizes.heads, sizes.size, sizes.size}, check.compute());
  Wkv7Gradients g;
  g.grad_y = view_tokens(readable_grad_y);
  g.grad_final_state = view_state(readable_grad_state);
  g.dr = view_tokens(dr);
  g.dw = view_tokens(dw);
  g.dk = view_tokens(dk);
  g.dv = view_tokens(dv);
  g.da = view_tokens(da);
  g.db = view_tokens(db);
  g.dstate = view_state(dstate);
  g.scratch = scratch.data_ptr();
  (chunks ? kernels.wkv7_chunk_backward : kernels.wkv7_backward)(p, g, call);
  return {dr, dw, dk, dv, da, db, dstate};
}

}  // namespace

Outputs wkv7_forward(Tensor r, Tensor w, Tensor k, Tensor v, Tensor a, Tensor b, OptionalTensor state,
                     OptionalTensor cu_seqlens, int64_t decay, bool save) {
  return forward(false, r, w, k, v, a, b, state, cu_seqlens, decay, save);
}

Outputs wkv7_chunk_forward(Tensor r, Tensor w, Tensor k, Tensor v, Tensor a, Tensor b, OptionalTensor state,
                           OptionalTensor cu_seqlens, int64_t decay, bool save) {
  return forward(true, r, w, k, v, a, b, state, cu_seqlens, decay, save);
}

Wkv7Backward wkv7_backward(Tensor r, Tensor w, Tensor k, Tensor v, Tensor a, Tensor b, Tensor checkpoints,
                           OptionalTensor grad_y, OptionalTensor grad_state, OptionalTensor cu_seqlens, int64_t decay) {
  return backward(false, r, w, k, v, a, b, checkpoints, grad_y, grad_state, cu_seqlens, decay);
}

Wkv7Backward wkv7_chunk_backward(Tensor r, Tensor w, Tensor k, Tensor v, Tensor a, Tensor b, Tensor checkpoints,
                                 OptionalTensor grad_y, OptionalTensor grad_state, OptionalTensor cu_seqlens,
                                 int64_t decay) {
  return backward(true, r, w, k, v, a, b, checkpoints, grad_y, grad_state, cu_seqlens, decay);
}

Tensor wkv7_step(Tensor r, Tensor w, Tensor k, Tensor v, Tensor a, Tensor b, Tensor state, OptionalTensor slots,
                 int64_t decay) {
  const DeviceKernels& kernels = kernels_of(r);
  const Checker check("wkv7_step_", "r", r);
  const HeadSizes sizes(check, "r", r, true);
  Inputs in = {r, w, k, v, a, b};
  Wkv7Params p = check_inputs(check, sizes, in, decay);
  const OptionalTensor rows = check_pool(check, state, slots, sizes);
  Tensor y = allocate(r, sizes_of(r), check.dtype());
  p.sequences = sizes.describe(sizes.batch, std::nullopt, kernels);
  p.num_states = state.size(0);
  p.state = p.final_state = view_state(state);
  p.slots = rows ? rows->const_data_ptr<int32_t>() : nullptr;
  p.y = view_tokens(y);
  kernels.wkv7_step(p, sizes.call(r));
  return y;
}

}  // namespace flash_rwkv
