#include "tensor_checks.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace flash_rwkv {

void fail(const char* op, const std::string& message) { throw std::runtime_error(std::string(op) + ": " + message); }

std::string name_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Half: return "float16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::Short: return "int16";
    case ScalarType::Char: return "int8";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Bool: return "bool";
    case ScalarType::ComplexFloat: return "complex64";
    case ScalarType::ComplexDouble: return "complex128";
    case ScalarType::Float8_e4m3fn: return "float8_e4m3fn";
    case ScalarType::Float8_e5m2: return "float8_e5m2";
    default: return "dtype number " + std::to_string(static_cast<int>(dtype));
  }
}

namespace {

std::string list_of(const std::vector<int64_t>& values) {
  std::string text = "[";
  for (size_t i = 0; i < values.size(); ++i) text += (i ? ", " : "") + std::to_string(values[i]);
  return text + "]";
}

std::string device_of(const Tensor& tensor) {
  if (tensor.is_cpu()) return "cpu";
  if (tensor.is_cuda()) return "cuda:" + std::to_string(tensor.get_device_index());
  return "another kind of device";
}

View view_of(const Tensor& tensor) {
  View view;
  view.data = tensor.data_ptr();
  view.dtype = to_dtype(tensor.scalar_type());
  return view;
}

}  // namespace

std::string shape_of(const Tensor& tensor) { return list_of(sizes_of(tensor)); }

DType to_dtype(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return DType::kFloat32;
    case ScalarType::Double: return DType::kFloat64;
    case ScalarType::BFloat16: return DType::kBFloat16;
    case ScalarType::Half: return DType::kFloat16;
    default: throw std::runtime_error("flash_rwkv has no kernels for " + name_of(dtype));
  }
}

Checker::Checker(const char* op, const char* name, const Tensor& first)
    : op_(op),
      first_name_(name),
      dtype_(first.scalar_type()),
      cpu_(first.is_cpu()),
      device_index_(first.get_device_index()) {
  const bool known = dtype_ == ScalarType::Float || dtype_ == ScalarType::BFloat16 || dtype_ == ScalarType::Half ||
                     (dtype_ == ScalarType::Double && cpu_);
  if (!known)
    fail(std::string(name) + " must be float32, bfloat16 or float16 (or float64 on the CPU), got " + name_of(dtype_) +
         " on " + device_of(first));
}

void Checker::device(const char* name, const Tensor& tensor) const {
  if (tensor.is_cpu() != cpu_ || tensor.get_device_index() != device_index_)
    fail(std::string(name) + " must be on the device of " + first_name_ + " (" +
         (cpu_ ? "cpu" : "cuda:" + std::to_string(device_index_)) + "), got " + device_of(tensor));
}

void Checker::shape(const char* name, const Tensor& tensor, std::initializer_list<Dim> dims) const {
  device(name, tensor);
  const auto came = tensor.sizes();
  const auto equal = [](int64_t size, const Dim& dim) { return size == dim.size; };
  if (std::equal(came.begin(), came.end(), dims.begin(), dims.end(), equal)) return;
  std::string names;
  std::vector<int64_t> sizes;
  for (const Dim& dim : dims) {
    names += (names.empty() ? "" : ", ") + std::string(dim.name);
    sizes.push_back(dim.size);
  }
  fail(std::string(name) + " must be [" + names + "] = " + list_of(sizes) + ", got " + shape_of(tensor));
}

void Checker::fail_dtype(const char* name, ScalarType got, const std::string& expected) const {
  fail(std::string(name) + " must be " + expected + " beside " + first_name_ + " in " + name_of(dtype_) + ", got " +
       name_of(got));
}

void Checker::dtype(const char* name, const Tensor& tensor, ScalarType expected) const {
  const ScalarType got = tensor.scalar_type();
  if (got != expected) fail_dtype(name, got, name_of(expected));
}

void Checker::same_dtype(const char* name, const Tensor& tensor) const { dtype(name, tensor, dtype_); }

void Checker::same_or_float(const char* name, const Tensor& tensor) const {
  const ScalarType got = tensor.scalar_type();
  const bool wide = dtype_ == ScalarType::Float || dtype_ == ScalarType::Double;
  if (got == dtype_ || (got == ScalarType::Float && !wide)) return;
  fail_dtype(name, got, wide ? name_of(dtype_) : name_of(dtype_) + " or float32");
}

void Checker::compute_dtype(const char* name, const Tensor& tensor) const { dtype(name, tensor, compute()); }

void Checker::pool_dtype(const char* name, const Tensor& tensor) const {
  const ScalarType got = tensor.scalar_type();
  const bool wide = dtype_ == ScalarType::Double;
  const bool fits =
      wide ? got == dtype_ : got == ScalarType::Float || got == ScalarType::BFloat16 || got == ScalarType::Half;
  if (!fits) fail_dtype(name, got, wide ? "float64" : "float32, bfloat16 or float16");
}

void Checker::no_overlap(const char* name, const Tensor& tensor) const {
  if (tensor.is_contiguous()) return;
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  if (std::find(sizes.begin(), sizes.end(), 0) != sizes.end()) return;
  // From the smallest stride on, each must step over all that the smaller ones reach.
  std::vector<std::pair<int64_t, int64_t>> dims;
  for (size_t i = 0; i < sizes.size(); ++i)
    if (sizes[i] > 1) dims.push_back({strides[i], sizes[i]});
  std::sort(dims.begin(), dims.end());
  int64_t reach = 1;
  for (const auto& [stride, size] : dims) {
    if (stride < reach)
      fail(std::string(name) + " must not overlap itself in memory, as it is updated in place, got shape " +
           shape_of(tensor) + " with strides " + list_of(std::vector<int64_t>(strides.begin(), strides.end())));
    reach += (size - 1) * stride;
  }
}

void Checker::head_size(int64_t n) const {
  if (n < 8 || n > 256 || n % 8 != 0)
    fail(std::string(first_name_) +
         " must have a head size N that is a multiple of 8 from 8 to 256, got N = " + std::to_string(n));
}

void Checker::decay(int64_t form) const {
  if (form < 0 || form > 2) fail("decay must be 0 (log), 1 (exp) or 2 (sigmoid), got " + std::to_string(form));
}

Tensor Checker::cu_seqlens(const Tensor& offsets, int64_t batch, int64_t tokens) const {
  device("cu_seqlens", offsets);
  if (offsets.scalar_type() != ScalarType::Int) fail("cu_seqlens must be int32, got " + name_of(offsets.scalar_type()));
  if (offsets.dim() != 1 || offsets.size(0) < 2)
    fail("cu_seqlens must be [S + 1] with at least 2 entries, got " + shape_of(offsets));
  if (batch != 1) fail("cu_seqlens needs packed sequences in a batch of B = 1, got B = " + std::to_string(batch));
  const Tensor packed = torch::stable::contiguous(offsets);
  if (!cpu_) return packed;
  const int32_t* values = packed.const_data_ptr<int32_t>();
  const int64_t last = offsets.size(0) - 1;
  if (values[0] != 0) fail("cu_seqlens must start at 0, got " + std::to_string(values[0]));
  for (int64_t i = 0; i < last; ++i)
    if (values[i + 1] < values[i])
      fail("cu_seqlens must not decrease, got " + std::to_string(values[i]) + " before " +
           std::to_string(values[i + 1]) + " at entry " + std::to_string(i + 1));
  if (values[last] != tokens)
    fail("cu_seqlens must end at T = " + std::to_string(tokens) + ", got " + std::to_string(values[last]));
  return packed;
}

Tensor Checker::slots(const Tensor& slots, int64_t batch, int64_t pool) const {
  shape("slots", slots, {{"B", batch}});
  if (slots.scalar_type() != ScalarType::Int) fail("slots must be int32, got " + name_of(slots.scalar_type()));
  const Tensor packed = torch::stable::contiguous(slots);
  if (!cpu_) return packed;
  const int32_t* values = packed.const_data_ptr<int32_t>();
  for (int64_t i = 0; i < batch; ++i)
    if (values[i] < 0 || values[i] >= pool)
      fail("slots must lie in [0, P) with P = " + std::to_string(pool) + " rows of state, got " +
           std::to_string(values[i]) + " at entry " + std::to_string(i));
  std::vector<int32_t> sorted(values, values + batch);
  std::sort(sorted.begin(), sorted.end());
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  if (twice != sorted.end()) fail("slots must be distinct, got " + std::to_string(*twice) + " more than once");
  return packed;
}

Tensor readable_rows(const Tensor& tensor) {
  constexpr int64_t kAlignment = 16;
  constexpr int64_t kFarthestToken = UINT32_MAX;  // the kernels keep the bytes from token to token in 32 bits
  if (tensor.is_cpu()) return tensor;
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  if (std::find(sizes.begin(), sizes.end(), 0) != sizes.end()) return tensor;
  const size_t last = sizes.size() - 1;
  const int64_t bytes = static_cast<int64_t>(tensor.element_size());
  const bool aligned = reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % kAlignment == 0;
  bool fits = aligned && strides[last] == 1;
  for (size_t i = 0; fits && i < last; ++i) {
    const int64_t apart = strides[i] * bytes;
    fits = sizes[i] == 1 || (apart % kAlignment == 0 && (i == 0 || apart <= kFarthestToken));
  }
  if (fits) return tensor;
  // contiguous() would hand back a contiguous tensor at an odd address.
  return torch::stable::contiguous(aligned ? tensor : torch::stable::clone(tensor));
}

Tensor allocate(const Tensor& like, const std::vector<int64_t>& shape, ScalarType dtype) {
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  for (size_t i = shape.size(); i-- > 0; stride *= std::max<int64_t>(shape[i], 1)) strides[i] = stride;
  // The function of Torch itself: each call of the op new_empty would look it up by its name.
  AtenTensorHandle tensor = nullptr;
  const auto code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  int32_t device_type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.data(), strides.data(),
                                                  code, device_type, like.get_device_index(), &tensor));
  return Tensor(tensor);
}

View view_tokens(const Tensor& tensor) {
  View view = view_of(tensor);
  const auto strides = tensor.strides();
  const size_t dims = strides.size();
  view.stride[0] = strides[0];
  view.stride[1] = dims == 4 ? strides[1] : 0;
  view.stride[2] = strides[dims - 2];
  view.stride[3] = strides[dims - 1];
  return view;
}

View view_channels(const Tensor& tensor) {
  View view = view_of(tensor);
  const auto strides = tensor.strides();
  const size_t dims = strides.size();
  view.stride[0] = strides[0];
  view.stride[1] = dims == 3 ? strides[1] : 0;
  view.stride[3] = strides[dims - 1];
  return view;
}

View view_head_row(const Tensor& tensor) {
  View view = view_of(tensor);
  const auto strides = tensor.strides();
  view.stride[2] = strides[0];
  view.stride[3] = strides[1];
  return view;
}

View view_row(const Tensor& tensor) {
  View view = view_of(tensor);
  view.stride[3] = tensor.stride(0);
  return view;
}

View view_state(const Tensor& tensor) {
  View view = view_of(tensor);
  const auto strides = tensor.strides();
  std::copy(strides.begin(), strides.end(), view.stride);
  return view;
}

View view_wkv4_state(const Tensor& tensor) {
  View view = view_of(tensor);
  view.stride[0] = tensor.stride(0);
  view.stride[2] = tensor.stride(1);
  view.stride[3] = tensor.stride(2);
  return view;
}

Tensor sum_sequences(const Tensor& parts, ScalarType dtype) {
  const std::vector<int64_t> first_dimension = {0};
  return torch::stable::to(torch::stable::sum(parts, first_dimension), dtype);
}

}  // namespace flash_rwkv
