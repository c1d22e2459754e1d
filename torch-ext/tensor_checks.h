// Argument checks whose messages name the argument, what was expected and what came; tensors to plain views.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "wkv_params.h"

namespace flash_rwkv {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Raises RuntimeError with "<op>: <message>".
[[noreturn]] void fail(const char* op, const std::string& message);

std::string name_of(ScalarType dtype);
std::string shape_of(const Tensor& tensor);

DType to_dtype(ScalarType dtype);

// One named dimension of an expected shape, e.g. {"H", 32}.
struct Dim {
  const char* name;
  int64_t size;
};

// What all tensors of a call are compared with.
class Checker {
 public:
  // `first` gives the device and the dtype; it is floating point (float64 on the CPU only).
  Checker(const char* op, const char* name, const Tensor& first);

  [[noreturn]] void fail(const std::string& message) const { flash_rwkv::fail(op_, message); }

  void device(const char* name, const Tensor& tensor) const;
  void shape(const char* name, const Tensor& tensor, std::initializer_list<Dim> dims) const;
  void dtype(const char* name, const Tensor& tensor, ScalarType expected) const;
  // Dtype of the first tensor.
  void same_dtype(const char* name, const Tensor& tensor) const;
  // Dtype of the first tensor, or float32 beside a lower precision.
  void same_or_float(const char* name, const Tensor& tensor) const;
  // float32, or float64 beside float64.
  void compute_dtype(const char* name, const Tensor& tensor) const;
  // Any of float32, bfloat16, float16; float64 beside float64.
  void pool_dtype(const char* name, const Tensor& tensor) const;

  // No two elements in one place: what is written there would depend on the order.
  void no_overlap(const char* name, const Tensor& tensor) const;

  void head_size(int64_t n) const;
  void decay(int64_t form) const;

  // int32 [S + 1] from 0 up to T, for a batch of one. Returns it contiguous. Values are read on the CPU only.
  Tensor cu_seqlens(const Tensor& offsets, int64_t batch, int64_t tokens) const;
  // int32 [B], distinct, each in [0, pool). Returns it contiguous. Values are read on the CPU only.
  Tensor slots(const Tensor& slots, int64_t batch, int64_t pool) const;

  ScalarType dtype() const { return dtype_; }
  ScalarType compute() const { return dtype_ == ScalarType::Double ? ScalarType::Double : ScalarType::Float; }

 private:
  [[noreturn]] void fail_dtype(const char* name, ScalarType got, const std::string& expected) const;

  const char* op_;
  const char* first_name_;
  ScalarType dtype_;
  bool cpu_;
  int32_t device_index_;
};

// Strides by dimension; a dimension that the tensor lacks has stride 0.
View view_tokens(const Tensor& tensor);      // [B, T, H, N], or [B, H, N]: one token
View view_channels(const Tensor& tensor);    // [B, T, C], or [B, C]: one token
View view_head_row(const Tensor& tensor);    // [H, N]
View view_row(const Tensor& tensor);         // [C]
View view_state(const Tensor& tensor);       // [S, H, N_value, N_key]
View view_wkv4_state(const Tensor& tensor);  // [S, 3, C]

inline View view_tokens(const OptionalTensor& t) { return t ? view_tokens(*t) : View(); }
inline View view_channels(const OptionalTensor& t) { return t ? view_channels(*t) : View(); }
inline View view_state(const OptionalTensor& t) { return t ? view_state(*t) : View(); }
inline View view_wkv4_state(const OptionalTensor& t) { return t ? view_wkv4_state(*t) : View(); }

// The tensor itself where the device's kernels can read it: any strides on the CPU; on CUDA channels side by side and
// every row of them on a 16-byte boundary. Else a contiguous copy.
Tensor readable_rows(const Tensor& tensor);
inline OptionalTensor readable_rows(const OptionalTensor& t) { return t ? OptionalTensor(readable_rows(*t)) : t; }

// Uninitialised, contiguous, on the device of `like`.
Tensor allocate(const Tensor& like, const std::vector<int64_t>& shape, ScalarType dtype);

inline std::vector<int64_t> sizes_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return std::vector<int64_t>(sizes.begin(), sizes.end());
}

// [S, …] summed over S, one after the other, then rounded to dtype.
Tensor sum_sequences(const Tensor& parts, ScalarType dtype);

}  // namespace flash_rwkv
