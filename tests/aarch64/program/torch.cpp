// The C functions of libtorch_cpu.so that the kernel imports, without the rest of Torch.
#include <algorithm>
#include <cstdio>
#include <stdexcept>
#include <thread>

#include "tensor.h"

namespace little_torch {

int num_threads = 1;

Registered& registered() {
  static Registered all;
  return all;
}

namespace {

std::vector<int64_t> packed_strides(const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0; stride *= std::max<int64_t>(sizes[i], 1)) strides[i] = stride;
  return strides;
}

Tensor empty(const std::vector<int64_t>& sizes, ScalarType dtype) {
  Tensor tensor = {dtype, sizes, packed_strides(sizes), nullptr};
  tensor.allocate();
  return tensor;
}

bool is_contiguous(const Tensor& tensor) {
  const std::vector<int64_t> packed = packed_strides(tensor.sizes);
  for (size_t i = 0; i < packed.size(); ++i)
    if (tensor.sizes[i] != 1 && tensor.strides[i] != packed[i]) return tensor.numel() == 0;
  return true;
}

// Where in memory the element of that number is.
const char* element(const Tensor& tensor, int64_t number) {
  int64_t offset = 0;
  for (size_t i = tensor.sizes.size(); i-- > 0; number /= tensor.sizes[i])
    offset += number % tensor.sizes[i] * tensor.strides[i];
  return tensor.memory.get() + offset * tensor.element_size();
}

Tensor contiguous(const Tensor& tensor) {
  if (is_contiguous(tensor)) return tensor;
  Tensor copy = empty(tensor.sizes, tensor.dtype);
  const int64_t bytes = tensor.element_size();
  for (int64_t i = 0; i < tensor.numel(); ++i) std::memcpy(copy.memory.get() + i * bytes, element(tensor, i), bytes);
  return copy;
}

template <class To, class From>
void convert(const Tensor& from, const Tensor& to) {
  for (int64_t i = 0; i < from.numel(); ++i)
    reinterpret_cast<To*>(to.memory.get())[i] = static_cast<To>(*reinterpret_cast<const From*>(element(from, i)));
}

// From the dtype that sums are made in.
Tensor cast(const Tensor& from, ScalarType dtype) {
  if (from.dtype == dtype) return from;
  Tensor to = empty(from.sizes, dtype);
  if (from.dtype == ScalarType::Float && dtype == ScalarType::BFloat16) convert<c10::BFloat16, float>(from, to);
  else if (from.dtype == ScalarType::Float && dtype == ScalarType::Half) convert<c10::Half, float>(from, to);
  else throw std::runtime_error("aten::to: these dtypes are not here");
  return to;
}

template <class T>
void add_rows(const Tensor& tensor, Tensor& sum) {
  T* to = reinterpret_cast<T*>(sum.memory.get());
  const T* from = reinterpret_cast<const T*>(tensor.memory.get());
  const int64_t row = sum.numel();
  std::fill(to, to + row, T(0));
  for (int64_t i = 0; i < tensor.sizes[0]; ++i)
    for (int64_t j = 0; j < row; ++j) to[j] += from[i * row + j];
}

Tensor sum_over_the_first_dimension(const Tensor& tensor) {
  Tensor sum = empty({tensor.sizes.begin() + 1, tensor.sizes.end()}, tensor.dtype);
  if (!is_contiguous(tensor)) throw std::runtime_error("aten::sum: only of contiguous tensors here");
  if (tensor.dtype == ScalarType::Double) add_rows<double>(tensor, sum);
  else add_rows<float>(tensor, sum);
  return sum;
}

// What an optional holds; the caller allocated it.
StableIValue held(StableIValue optional) {
  const std::unique_ptr<StableIValue> owned(reinterpret_cast<StableIValue*>(optional));
  return *owned;
}

StableIValue call(const std::string& name, StableIValue* stack) {
  const Tensor self = taken(stack[0]);
  if (name == "aten::contiguous") return reinterpret_cast<StableIValue>(handle(contiguous(self)));
  if (name == "aten::to")
    return reinterpret_cast<StableIValue>(handle(cast(self, static_cast<ScalarType>(held(stack[1])))));
  if (name == "aten::sum") {
    const std::unique_ptr<std::vector<StableIValue>> dimensions(
        reinterpret_cast<std::vector<StableIValue>*>(held(stack[1])));
    if (*dimensions != std::vector<StableIValue>{0}) throw std::runtime_error("aten::sum: only over dimension 0 here");
    return reinterpret_cast<StableIValue>(handle(sum_over_the_first_dimension(self)));
  }
  throw std::runtime_error(name + " is not here");
}

}  // namespace
}  // namespace little_torch

using namespace little_torch;

extern "C" {

#define CONSTANT(name, value) \
  int32_t name() { return static_cast<int32_t>(value); }
CONSTANT(aoti_torch_dtype_bfloat16, ScalarType::BFloat16)
CONSTANT(aoti_torch_dtype_bool, ScalarType::Bool)
CONSTANT(aoti_torch_dtype_complex128, ScalarType::ComplexDouble)
CONSTANT(aoti_torch_dtype_complex32, ScalarType::ComplexHalf)
CONSTANT(aoti_torch_dtype_complex64, ScalarType::ComplexFloat)
CONSTANT(aoti_torch_dtype_float16, ScalarType::Half)
CONSTANT(aoti_torch_dtype_float32, ScalarType::Float)
CONSTANT(aoti_torch_dtype_float64, ScalarType::Double)
CONSTANT(aoti_torch_dtype_float8_e4m3fn, ScalarType::Float8_e4m3fn)
CONSTANT(aoti_torch_dtype_float8_e4m3fnuz, ScalarType::Float8_e4m3fnuz)
CONSTANT(aoti_torch_dtype_float8_e5m2, ScalarType::Float8_e5m2)
CONSTANT(aoti_torch_dtype_float8_e5m2fnuz, ScalarType::Float8_e5m2fnuz)
CONSTANT(aoti_torch_dtype_int16, ScalarType::Short)
CONSTANT(aoti_torch_dtype_int32, ScalarType::Int)
CONSTANT(aoti_torch_dtype_int64, ScalarType::Long)
CONSTANT(aoti_torch_dtype_int8, ScalarType::Char)
CONSTANT(aoti_torch_dtype_uint16, ScalarType::UInt16)
CONSTANT(aoti_torch_dtype_uint32, ScalarType::UInt32)
CONSTANT(aoti_torch_dtype_uint64, ScalarType::UInt64)
CONSTANT(aoti_torch_dtype_uint8, ScalarType::Byte)
CONSTANT(torch_dtype_float4_e2m1fn_x2, ScalarType::Float4_e2m1fn_x2)
CONSTANT(torch_dtype_float8_e8m0fnu, ScalarType::Float8_e8m0fnu)
CONSTANT(aoti_torch_device_type_cpu, 0)
CONSTANT(aoti_torch_device_type_cuda, 1)
CONSTANT(aoti_torch_device_type_xpu, 12)
CONSTANT(aoti_torch_device_type_mps, 13)
CONSTANT(aoti_torch_device_type_meta, 14)
CONSTANT(aoti_torch_device_type_privateuse1, 20)
CONSTANT(aoti_torch_layout_strided, 0)
CONSTANT(aoti_torch_layout_sparse_coo, 1)
CONSTANT(aoti_torch_layout_sparse_csr, 2)
CONSTANT(aoti_torch_layout__mkldnn, 3)
CONSTANT(aoti_torch_layout_sparse_csc, 4)
CONSTANT(aoti_torch_layout_sparse_bsr, 5)
CONSTANT(aoti_torch_layout_sparse_bsc, 6)
CONSTANT(aoti_torch_layout_jagged, 7)
CONSTANT(aoti_torch_memory_format_contiguous_format, 0)
CONSTANT(aoti_torch_memory_format_preserve_format, 1)
CONSTANT(aoti_torch_memory_format_channels_last, 2)
CONSTANT(aoti_torch_memory_format_channels_last_3d, 3)
#undef CONSTANT

uint64_t aoti_torch_abi_version() { return TORCH_TARGET_VERSION; }

// --- Registration ---

AOTITorchError aoti_torch_library_init_def(const char*, const char*, uint32_t, TorchLibraryHandle*) { return 0; }
AOTITorchError aoti_torch_library_init_impl(const char*, const char*, const char*, uint32_t, TorchLibraryHandle*) {
  return 0;
}
AOTITorchError aoti_torch_delete_library_object(TorchLibraryHandle) { return 0; }
AOTITorchError aoti_torch_library_def(TorchLibraryHandle, const char* schema) {
  registered().schemas.emplace_back(schema);
  return 0;
}
AOTITorchError torch_library_impl(TorchLibraryHandle, const char* name, Kernel kernel, uint64_t) {
  registered().kernels[name] = kernel;
  return 0;
}
// Python is not here either.
void* PyModule_Create2(void*, int) { return nullptr; }

// --- Tensors ---

AOTITorchError aoti_torch_new_tensor_handle(AtenTensorHandle tensor, AtenTensorHandle* result) {
  *result = handle(tensor_of(tensor));
  return 0;
}
AOTITorchError aoti_torch_delete_tensor_object(AtenTensorHandle tensor) {
  delete &tensor_of(tensor);
  return 0;
}
AOTITorchError aoti_torch_empty_strided(int64_t dimensions, const int64_t* sizes, const int64_t* strides, int32_t dtype,
                                        int32_t, int32_t, AtenTensorHandle* result) {
  Tensor tensor = {static_cast<ScalarType>(dtype), {sizes, sizes + dimensions}, {strides, strides + dimensions}, {}};
  tensor.allocate();
  *result = handle(std::move(tensor));
  return 0;
}

#define PROPERTY(name, Type, value)                            \
  AOTITorchError name(AtenTensorHandle tensor, Type* result) { \
    [[maybe_unused]] Tensor& self = tensor_of(tensor);         \
    *result = value;                                           \
    return 0;                                                  \
  }
PROPERTY(aoti_torch_get_data_ptr, void*, self.memory.get())
PROPERTY(torch_get_const_data_ptr, const void*, self.memory.get())
PROPERTY(aoti_torch_get_device_index, int32_t, -1)
PROPERTY(aoti_torch_get_device_type, int32_t, aoti_torch_device_type_cpu())
PROPERTY(aoti_torch_get_dim, int64_t, static_cast<int64_t>(self.sizes.size()))
PROPERTY(aoti_torch_get_dtype, int32_t, static_cast<int32_t>(self.dtype))
PROPERTY(aoti_torch_get_numel, int64_t, self.numel())
PROPERTY(aoti_torch_get_sizes, int64_t*, self.sizes.data())
PROPERTY(aoti_torch_get_strides, int64_t*, self.strides.data())
PROPERTY(aoti_torch_is_contiguous, bool, is_contiguous(self))
#undef PROPERTY

AOTITorchError aoti_torch_get_size(AtenTensorHandle tensor, int64_t dimension, int64_t* result) {
  *result = tensor_of(tensor).sizes.at(dimension);
  return 0;
}
AOTITorchError aoti_torch_get_stride(AtenTensorHandle tensor, int64_t dimension, int64_t* result) {
  *result = tensor_of(tensor).strides.at(dimension);
  return 0;
}
size_t aoti_torch_dtype_element_size(int32_t dtype) {
  switch (static_cast<ScalarType>(dtype)) {
    case ScalarType::Byte:
    case ScalarType::Char:
    case ScalarType::Bool:
    case ScalarType::Float8_e4m3fn: return 1;
    case ScalarType::Short:
    case ScalarType::Half:
    case ScalarType::BFloat16: return 2;
    case ScalarType::Int:
    case ScalarType::Float: return 4;
    case ScalarType::Long:
    case ScalarType::Double:
    case ScalarType::ComplexFloat: return 8;
    default: std::fprintf(stderr, "elements of dtype %d are not here\n", dtype); std::abort();
  }
}

// --- Lists and strings ---

AOTITorchError torch_new_list_reserve_size(size_t, StableListHandle* list) {
  *list = reinterpret_cast<StableListHandle>(new std::vector<StableIValue>());
  return 0;
}
AOTITorchError torch_list_push_back(StableListHandle list, StableIValue value) {
  reinterpret_cast<std::vector<StableIValue>*>(list)->push_back(value);
  return 0;
}
AOTITorchError torch_delete_list(StableListHandle list) {
  delete reinterpret_cast<std::vector<StableIValue>*>(list);
  return 0;
}
AOTITorchError torch_new_string_handle(const char* data, size_t length, StringHandle* result) {
  *result = reinterpret_cast<StringHandle>(new std::string(data, length));
  return 0;
}

// --- Calls ---

AOTITorchError torch_call_dispatcher(const char* name, const char*, StableIValue* stack, uint64_t) {
  stack[0] = call(name, stack);
  return 0;
}
AOTITorchError torch_get_num_threads(uint32_t* threads) {
  *threads = num_threads;
  return 0;
}
AOTITorchError torch_parallel_for(int64_t begin, int64_t end, int64_t, ParallelFunc body, void* context) {
  std::vector<std::thread> threads;
  for (int64_t i = begin; i < end; ++i) threads.emplace_back(body, i, i + 1, context);
  for (std::thread& thread : threads) thread.join();
  return 0;
}

}  // extern "C"
