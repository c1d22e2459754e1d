// Loads a module and calls its ops for whoever writes requests to standard input.
//
// First it writes the schemas. A request is a number of threads, an op's name, what the op returns (a letter each: t
// tensor, s string, b bool) and the arguments; the answer is what it returned and then what became of the tensors that
// it may change, or the message of what it threw. Numbers are of eight bytes.
#include <dlfcn.h>
#include <unistd.h>

#include <cstdio>
#include <exception>

#include "tensor.h"

using namespace little_torch;

namespace {

void read_bytes(void* to, size_t bytes) {
  if (bytes != 0 && std::fread(to, 1, bytes, stdin) != bytes) std::exit(0);  // the caller is gone
}
void write_bytes(const void* from, size_t bytes) { std::fwrite(from, 1, bytes, stdout); }

int64_t read_number() {
  int64_t value = 0;
  read_bytes(&value, sizeof(value));
  return value;
}
void write_number(int64_t value) { write_bytes(&value, sizeof(value)); }

std::string read_text() {
  std::string text(read_number(), '\0');
  read_bytes(text.data(), text.size());
  return text;
}
void write_text(const std::string& text) {
  write_number(static_cast<int64_t>(text.size()));
  write_bytes(text.data(), text.size());
}

std::vector<int64_t> read_numbers() {
  std::vector<int64_t> values(read_number());
  for (int64_t& value : values) value = read_number();
  return values;
}
void write_numbers(const std::vector<int64_t>& values) {
  write_number(static_cast<int64_t>(values.size()));
  for (const int64_t value : values) write_number(value);
}

Tensor read_tensor() {
  Tensor tensor;
  tensor.dtype = static_cast<ScalarType>(read_number());
  tensor.sizes = read_numbers();
  tensor.strides = read_numbers();
  tensor.allocate();
  read_bytes(tensor.memory.get(), tensor.span() * tensor.element_size());
  return tensor;
}
void write_memory(const Tensor& tensor) { write_bytes(tensor.memory.get(), tensor.span() * tensor.element_size()); }
void write_tensor(const Tensor& tensor) {
  write_number(static_cast<int64_t>(tensor.dtype));
  write_numbers(tensor.sizes);
  write_numbers(tensor.strides);
  write_memory(tensor);
}

StableIValue as_value(const Tensor& tensor) { return reinterpret_cast<StableIValue>(handle(tensor)); }

struct Arguments {
  std::vector<StableIValue> stack;
  std::vector<Tensor> changed;
};

// n none, i integer or bool, t tensor, o optional that holds one, m tensor that the op may change.
Arguments read_arguments() {
  Arguments arguments;
  for (const char kind : read_text()) {
    if (kind == 'n') {
      arguments.stack.push_back(0);
    } else if (kind == 'i') {
      arguments.stack.push_back(static_cast<StableIValue>(read_number()));
    } else {
      const Tensor tensor = read_tensor();
      const StableIValue value = as_value(tensor);
      arguments.stack.push_back(kind == 'o' ? reinterpret_cast<StableIValue>(new StableIValue(value)) : value);
      if (kind == 'm') arguments.changed.push_back(tensor);
    }
  }
  return arguments;
}

void write_result(char kind, StableIValue value) {
  if (kind == 't') return write_tensor(taken(value));
  if (kind == 'b') return write_number(value & 1);
  const std::unique_ptr<std::string> text(reinterpret_cast<std::string*>(value));
  write_text(*text);
}

void answer() {
  num_threads = static_cast<int>(read_number());
  const std::string name = read_text(), results = read_text();
  Arguments arguments = read_arguments();
  const size_t inputs = arguments.stack.size();
  arguments.stack.resize(std::max(inputs, results.size()));
  try {
    registered().kernels.at(name)(arguments.stack.data(), inputs, results.size());
  } catch (const std::exception& error) {
    return write_text(error.what());
  }
  write_text("");
  for (size_t i = 0; i < results.size(); ++i) write_result(results[i], arguments.stack[i]);
  for (const Tensor& tensor : arguments.changed) write_memory(tensor);
}

}  // namespace

int main(int count, char** words) {
  if (count != 2 || dlopen(words[1], RTLD_NOW) == nullptr) {
    std::fprintf(stderr, "%s\n", count == 2 ? dlerror() : "usage: program MODULE");
    return 1;
  }
  write_number(static_cast<int64_t>(registered().schemas.size()));
  for (const std::string& schema : registered().schemas) write_text(schema);
  for (;;) {
    std::fflush(stdout);
    answer();
  }
}
