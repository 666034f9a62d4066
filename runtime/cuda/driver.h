// NVIDIA's driver library, opened at run time: a program that uses Kerf starts on machines without one.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "runtime/cuda/api.h"

namespace kerf::cuda {

/// The driver, open and initialised. Nothing about it is global: whoever needs it holds a pointer to it.
class Driver {
 public:
  /// The library that KERF_CUDA_DRIVER names, else libcuda.so.1. Throws DeviceError: there is no driver, it is too old,
  /// it is the toolkit's stub, it finds no GPU, the process was forked off one that had used it.
  static std::shared_ptr<const Driver> open();

  const api::Functions* operator->() const { return &functions_; }
  /// 13000 for CUDA 13.0
  int version() const { return version_; }
  std::string version_text() const;
  /// At least 1.
  int device_count() const { return device_count_; }
  const std::string& library() const { return library_; }

  /// Throws the Kerf error that `result` stands for unless it is success. `call` is the driver's function, `doing` says
  /// for what: "cuMemAlloc_v2", "allocating 3 GiB on cuda:0".
  void check(api::Result result, std::string_view call, std::string_view doing) const {
    if (result != api::Result::success) fail(result, call, doing);
  }
  [[noreturn]] void fail(api::Result result, std::string_view call, std::string_view doing,
                         std::string_view more = {}) const {
    fail(result, call, doing, more, result);
  }
  /// `meant`: the result that says more about the cause than the one the driver gave.
  [[noreturn]] void fail(api::Result result, std::string_view call, std::string_view doing, std::string_view more,
                         api::Result meant) const;
  /// "out of memory (CUDA_ERROR_OUT_OF_MEMORY, 2)"
  std::string describe(api::Result result) const;

 private:
  Driver() = default;
  std::shared_ptr<void> handle_;
  std::string library_;
  api::Functions functions_;
  int version_ = 0;
  int device_count_ = 0;
};

}  // namespace kerf::cuda
