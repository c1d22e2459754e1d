#include "heads.h"

#include <cstring>
#include <string>

namespace flash_rwkv {

HeadSizes::HeadSizes(const Checker& check, const char* name, const Tensor& first, bool step) {
  one_token = step && first.dim() == 3;
  if (first.dim() != 4 && !one_token)
    check.fail(std::string(name) + " must be [B, T, H, N]" + (step ? " or [B, H, N]" : "") + ", got " +
               shape_of(first));
  batch = first.size(0);
  tokens = one_token ? 1 : first.size(1);
  heads = first.size(one_token ? 1 : 2);
  size = first.size(one_token ? 2 : 3);
  check.head_size(size);
}

void HeadSizes::check_tokens(const Checker& check, const char* name, const Tensor& tensor) const {
  if (one_token) check.shape(name, tensor, {{"B", batch}, {"H", heads}, {"N", size}});
  else check.shape(name, tensor, {{"B", batch}, {"T", tokens}, {"H", heads}, {"N", size}});
}

Tensor allocate_checkpoints(const Checker& check, const Tensor& like, const HeadSizes& sizes,
                            const Sequences& sequences, int64_t extra_rows, bool save,
                            std::optional<ScalarType> dtype) {
  std::vector<int64_t> shape = sizes.checkpoint_shape(sequences, extra_rows);
  if (!save) shape[0] = 0;
  Tensor checkpoints = allocate(like, shape, dtype.value_or(check.compute()));
  if (checkpoints.numel() == 0 || sequences.cu_seqlens == nullptr) return checkpoints;
  if (!like.is_cpu()) return torch::stable::zero_(checkpoints);  // which blocks are owned, only the device knows
  const int64_t blocks = checkpoints.size(0);
  const int64_t bytes = checkpoints.numel() / blocks * static_cast<int64_t>(checkpoints.element_size());
  char* data = static_cast<char*>(checkpoints.data_ptr());
  for (int64_t s = 0; s < sequences.count; ++s) {
    const int64_t owned = (sequences.length(s) + sequences.checkpoint_tokens - 1) / sequences.checkpoint_tokens;
    const int64_t end = sequences.first_checkpoint(s) + owned;
    const int64_t next = s + 1 < sequences.count ? sequences.first_checkpoint(s + 1) : blocks;
    std::memset(data + end * bytes, 0, (next - end) * bytes);
  }
  return checkpoints;
}

void check_state(const Checker& check, const char* name, const Tensor& state, int64_t sequences,
                 const HeadSizes& sizes) {
  check.shape(name, state, {{"S", sequences}, {"H", sizes.heads}, {"N", sizes.size}, {"N", sizes.size}});
  check.compute_dtype(name, state);
}

OptionalTensor check_pool(const Checker& check, const Tensor& state, const OptionalTensor& slots,
                          const HeadSizes& sizes) {
  const int64_t rows = slots && state.dim() > 0 ? state.size(0) : sizes.batch;
  check.shape("state", state, {{slots ? "P" : "B", rows}, {"H", sizes.heads}, {"N", sizes.size}, {"N", sizes.size}});
  check.pool_dtype("state", state);
  check.no_overlap("state", state);
  if (!slots) return std::nullopt;
  return check.slots(*slots, sizes.batch, rows);
}

void check_gradients(const Checker& check, const Tensor& checkpoints, const OptionalTensor& grad_y,
                     const OptionalTensor& grad_state, const HeadSizes& sizes, const Sequences& sequences,
                     int64_t extra_rows, std::optional<ScalarType> dtype) {
  const std::vector<int64_t> shape = sizes.checkpoint_shape(sequences, extra_rows);
  check.shape("checkpoints", checkpoints,
              {{"blocks", shape[0]}, {"H", shape[1]}, {extra_rows ? "N + tokens" : "N", shape[2]}, {"N", shape[3]}});
  check.dtype("checkpoints", checkpoints, dtype.value_or(check.compute()));
  if (!checkpoints.is_contiguous()) check.fail("checkpoints must be contiguous, as forward made them");
  if (grad_y) {
    sizes.check_tokens(check, "grad_y", *grad_y);
    check.same_dtype("grad_y", *grad_y);
  }
  if (grad_state) check_state(check, "grad_state", *grad_state, sequences.count, sizes);
}

bool has_chunks(const DeviceKernels& kernels, int64_t version, int64_t size, bool gradients, const Call& call) {
  if ((size != 64 && size != 128) || kernels.has_chunks == nullptr || !kernels.has_chunks(call)) return false;
  const auto has_gradients = version == 7 ? kernels.has_wkv7_chunk_gradients : kernels.has_wkv6_chunk_gradients;
  return !gradients || has_gradients(size, call);
}

void check_chunks(const Checker& check, const DeviceKernels& kernels, const HeadSizes& sizes, const Tensor& first) {
  const std::string got = "; expected 'auto' or 'recurrent', got 'chunk' for ";
  if (kernels.has_chunks == nullptr || !kernels.has_chunks(sizes.call(first)))
    check.fail("algorithm 'chunk' runs on the tensor cores of CUDA devices of capability 8.0 and later" + got +
               "a tensor on " + (first.is_cpu() ? "cpu" : "cuda:" + std::to_string(first.get_device_index())));
  if (check.dtype() != ScalarType::BFloat16 && check.dtype() != ScalarType::Half)
    check.fail("algorithm 'chunk' takes bfloat16 and float16" + got + name_of(check.dtype()));
  if (sizes.size != 64 && sizes.size != 128)
    check.fail("algorithm 'chunk' takes head sizes 64 and 128" + got + std::to_string(sizes.size));
}

}  // namespace flash_rwkv
