// Elementwise mathematics as LLVM vectors: no calls, the same code for every lane count. Arguments are float or
// <W x float>, results have the same type. Only codegen/cpu includes this.
#pragma once

#include "codegen/llvm.h"
#include "kerf/tensor.h"

namespace kerf::codegen::cpu {

/// What the target can do; decides which instructions are emitted.
struct CpuInfo {
  bool x86 = false;    // else AArch64
  int lanes = 4;       // f32 lanes of a vector register
  int registers = 16;  // vector registers
  bool fma = false;
  bool f16c = false;      // f16 <-> f32 in hardware (x86 F16C, AArch64 always)
  bool bf16_dot = false;  // AVX512-BF16: vdpbf16ps
};

/// Within 2 ulp of correctly rounded for every float, subnormal results included; exp(-inf) = 0, NaN gives NaN.
llvm::Value* emit_exp(llvm::IRBuilder<>& b, llvm::Value* x, const CpuInfo& cpu);
/// log(0) = -inf, log(negative) = NaN; subnormal arguments are exact arguments.
llvm::Value* emit_log(llvm::IRBuilder<>& b, llvm::Value* x, const CpuInfo& cpu);
llvm::Value* emit_tanh(llvm::IRBuilder<>& b, llvm::Value* x, const CpuInfo& cpu);

/// Bits of bf16 or f16 (i16 or <W x i16>) to f32 and back, rounded to nearest even, NaN kept, subnormals kept.
llvm::Value* emit_widen(llvm::IRBuilder<>& b, llvm::Value* bits, DType from, const CpuInfo& cpu);
llvm::Value* emit_narrow(llvm::IRBuilder<>& b, llvm::Value* x, DType to, const CpuInfo& cpu);

/// a * b + c: fused where the target has it, else two roundings.
llvm::Value* emit_fma(llvm::IRBuilder<>& b, llvm::Value* x, llvm::Value* y, llvm::Value* z, const CpuInfo& cpu);
/// NaN if either is NaN.
llvm::Value* emit_max(llvm::IRBuilder<>& b, llvm::Value* x, llvm::Value* y);
llvm::Value* emit_min(llvm::IRBuilder<>& b, llvm::Value* x, llvm::Value* y);

}  // namespace kerf::codegen::cpu
