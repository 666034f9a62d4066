// Tests on the stand-in driver, which stands beside the test program.
#pragma once

#include <doctest/doctest.h>

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "kerf/error.h"
#include "runtime/cuda/device.h"
#include "tests/support/fake_cuda/fake_cuda.h"

namespace kerf::test {

/// Sets a variable of the environment and puts it back.
class Variable {
 public:
  Variable(std::string name, const std::string& value) : name_(std::move(name)) {
    const char* before = std::getenv(name_.c_str());
    if (before) before_ = before, was_set_ = true;
    setenv(name_.c_str(), value.c_str(), 1);
  }
  ~Variable() { was_set_ ? setenv(name_.c_str(), before_.c_str(), 1) : unsetenv(name_.c_str()); }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  std::string name_, before_;
  bool was_set_ = false;
};

inline std::string beside_tests(const std::string& file) {
  return (std::filesystem::read_symlink("/proc/self/exe").parent_path() / file).string();
}

/// The stand-in is the driver while this lives; its books are fresh, and balanced at the end.
class Fake {
 public:
  explicit Fake(const std::string& devices = "9.0")
      : driver_("KERF_CUDA_DRIVER", beside_tests("libkerf_fake_cuda.so")), devices_("KERF_FAKE_CUDA_DEVICES", devices) {
    void* library = dlopen(std::getenv("KERF_CUDA_DRIVER"), RTLD_NOW | RTLD_LOCAL);
    REQUIRE_MESSAGE(library, dlerror());
    state_ = reinterpret_cast<FakeStateFunction>(dlsym(library, fake_state_symbol))();
    stack_ = reinterpret_cast<FakeStackFunction>(dlsym(library, fake_stack_symbol))();
    *state_ = {};
    stack_->clear();
  }
  ~Fake() {
    CHECK(state_->memory.size() == 0);
    CHECK(state_->modules == 0);
    CHECK(state_->streams == 0);
    CHECK(state_->events == 0);
    CHECK(state_->graphs == 0);
    CHECK(state_->links == 0);
    for (const auto& [ordinal, count] : state_->retained) CHECK(count == 0);
    CHECK(stack_->empty());
  }
  FakeState* operator->() const { return state_; }
  std::vector<cuda::api::Context>& stack() const { return *stack_; }

 private:
  Variable driver_, devices_;
  FakeState* state_ = nullptr;
  std::vector<cuda::api::Context>* stack_ = nullptr;
};

/// What f throws: "UsageError: ...".
template <class F>
std::string thrown(F&& f) {
  try {
    f();
  } catch (const UsageError& e) {
    return std::string("UsageError: ") + e.what();
  } catch (const DeviceError& e) {
    return std::string("DeviceError: ") + e.what();
  } catch (const InternalError& e) {
    return std::string("InternalError: ") + e.what();
  }
  return "nothing";
}

/// A kernel that stores 64-bit words: out[i] = i + add for i < count, count < 2^31, in blocks that step by the grid.
inline const std::string count_ptx = R"(
.version 8.0
.target sm_80
.address_size 64
.visible .entry count(
  .param .align 8 .b8 args[24]
)
.maxntid 128, 1, 1
{
  .reg .pred %p;
  .reg .b32 %r<5>;
  .reg .b64 %rd<8>;
  ld.param.u64 %rd1, [args];
  ld.param.u64 %rd2, [args+8];
  ld.param.u64 %rd3, [args+16];
  cvta.to.global.u64 %rd1, %rd1;
  mov.u32 %r1, %ctaid.x;
  mov.u32 %r2, %ntid.x;
  mov.u32 %r3, %tid.x;
  mov.u32 %r4, %nctaid.x;
  mad.lo.s32 %r1, %r1, %r2, %r3;
  mul.lo.s32 %r4, %r4, %r2;
  cvt.u64.u32 %rd4, %r1;
  cvt.u64.u32 %rd5, %r4;
LOOP:
  setp.ge.u64 %p, %rd4, %rd2;
  @%p bra DONE;
  add.s64 %rd6, %rd4, %rd3;
  shl.b64 %rd7, %rd4, 3;
  add.s64 %rd7, %rd1, %rd7;
  st.global.u64 [%rd7], %rd6;
  add.s64 %rd4, %rd4, %rd5;
  bra LOOP;
DONE:
  ret;
}
)";

}  // namespace kerf::test
