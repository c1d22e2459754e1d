// wkv4: checks, allocation, dispatch.
#include "device_kernels.h"
#include "torch_binding.h"

namespace flash_rwkv {
namespace {

struct Inputs {
  const Tensor &k, &v, &w, &u;
};

struct ChannelSizes {
  int64_t batch, tokens, channels;
  bool one_token;

  ChannelSizes(const Checker& check, const Tensor& k, bool step) {
    one_token = step && k.dim() == 2;
    if (k.dim() != 3 && !one_token)
      check.fail(std::string("k must be [B, T, C]") + (step ? " or [B, C]" : "") + ", got " + shape_of(k));
    batch = k.size(0);
    tokens = one_token ? 1 : k.size(1);
    channels = k.size(one_token ? 1 : 2);
  }

  void check_tokens(const Checker& check, const char* name, const Tensor& tensor) const {
    if (one_token) check.shape(name, tensor, {{"B", batch}, {"C", channels}});
    else check.shape(name, tensor, {{"B", batch}, {"T", tokens}, {"C", channels}});
  }

  void check_state(const Checker& check, const char* name, const Tensor& state) const {
    check.shape(name, state, {{"B", batch}, {"3", 3}, {"C", channels}});
    check.compute_dtype(name, state);
  }

  // A channel's token costs two exponentials and a division, about as much as this many elements of a matrix state.
  Call call(const Tensor& first) const { return {first.get_device_index(), batch * tokens * channels * 32}; }

  int64_t checkpoint_blocks() const { return batch * ((tokens + kCheckpointTokens - 1) / kCheckpointTokens); }
};

Wkv4Params check_inputs(const Checker& check, const ChannelSizes& sizes, const Inputs& in) {
  sizes.check_tokens(check, "v", in.v);
  check.same_dtype("v", in.v);
  check.shape("w", in.w, {{"C", sizes.channels}});
  check.same_or_float("w", in.w);
  check.shape("u", in.u, {{"C", sizes.channels}});
  check.same_or_float("u", in.u);
  Wkv4Params p;
  p.sequences = {sizes.batch, sizes.tokens, nullptr};
  p.num_channels = sizes.channels;
  p.k = view_channels(in.k);
  p.v = view_channels(in.v);
  p.w = view_row(in.w);
  p.u = view_row(in.u);
  return p;
}

}  // namespace

Outputs wkv4_forward(Tensor k, Tensor v, Tensor w, Tensor u, OptionalTensor state, bool save) {
  const Checker check("wkv4", "k", k);
  const ChannelSizes sizes(check, k, false);
  Wkv4Params p = check_inputs(check, sizes, {k, v, w, u});
  if (state) sizes.check_state(check, "state", *state);
  Tensor y = allocate(k, sizes_of(k), check.dtype());
  Tensor final_state = allocate(k, {sizes.batch, 3, sizes.channels}, check.compute());
  Tensor checkpoints = allocate(k, {save ? sizes.checkpoint_blocks() : 0, 3, sizes.channels}, check.compute());
  p.state = view_wkv4_state(state);
  p.y = view_channels(y);
  p.final_state = view_wkv4_state(final_state);
  p.checkpoints = save ? checkpoints.data_ptr() : nullptr;
  kernels_of(k).wkv4_forward(p, sizes.call(k));
  return {y, final_state, checkpoints};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> wkv4_backward(Tensor k, Tensor v, Tensor w, Tensor u,
                                                                 Tensor checkpoints, OptionalTensor grad_y,
                                                                 OptionalTensor grad_state) {
  const Checker check("wkv4", "k", k);
  const ChannelSizes sizes(check, k, false);
  Wkv4Params p = check_inputs(check, sizes, {k, v, w, u});
  check.shape("checkpoints", checkpoints, {{"blocks", sizes.checkpoint_blocks()}, {"3", 3}, {"C", sizes.channels}});
  check.compute_dtype("checkpoints", checkpoints);
  if (!checkpoints.is_contiguous()) check.fail("checkpoints must be contiguous, as forward made them");
  if (grad_y) {
    sizes.check_tokens(check, "grad_y", *grad_y);
    check.same_dtype("grad_y", *grad_y);
  }
  if (grad_state) sizes.check_state(check, "grad_state", *grad_state);
  p.checkpoints = checkpoints.data_ptr();

  Tensor dk = allocate(k, sizes_of(k), check.dtype());
  Tensor dv = allocate(k, sizes_of(k), check.dtype());
  Tensor dw_sum = allocate(k, {sizes.batch, sizes.channels}, check.compute());
  Tensor du_sum = allocate(k, {sizes.batch, sizes.channels}, check.compute());
  Tensor dstate = allocate(k, {sizes.batch, 3, sizes.channels}, check.compute());
  Wkv4Gradients g;
  g.grad_y = view_channels(grad_y);
  g.grad_final_state = view_wkv4_state(grad_state);
  g.dk = view_channels(dk);
  g.dv = view_channels(dv);
  g.dw_sum = dw_sum.data_ptr();
  g.du_sum = du_sum.data_ptr();
  g.dstate = view_wkv4_state(dstate);
  kernels_of(k).wkv4_backward(p, g, sizes.call(k));
  return {dk, dv, sum_sequences(dw_sum, w.scalar_type()), sum_sequences(du_sum, u.scalar_type()), dstate};
}

Tensor wkv4_step(Tensor k, Tensor v, Tensor w, Tensor u, Tensor state, OptionalTensor slots) {
  const Checker check("wkv4_step_", "k", k);
  const ChannelSizes sizes(check, k, true);
  Wkv4Params p = check_inputs(check, sizes, {k, v, w, u});
  const int64_t rows = slots && state.dim() > 0 ? state.size(0) : sizes.batch;
  check.shape("state", state, {{slots ? "P" : "B", rows}, {"3", 3}, {"C", sizes.channels}});
  check.pool_dtype("state", state);
  check.no_overlap("state", state);
  OptionalTensor packed;
  if (slots) packed = check.slots(*slots, sizes.batch, rows);
  Tensor y = allocate(k, sizes_of(k), check.dtype());
  p.state = p.final_state = view_wkv4_state(state);
  p.slots = packed ? packed->const_data_ptr<int32_t>() : nullptr;
  p.y = view_channels(y);
  p.num_states = state.size(0);
  kernels_of(k).wkv4_step(p, sizes.call(k));
  return y;
}

}  // namespace flash_rwkv
