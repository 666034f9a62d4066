// exp, log, tanh and the half formats as straight vector code.
//
// The method is the usual one: reduce the argument to a short interval, evaluate a minimax polynomial there, undo the
// reduction in the exponent bits. Nothing here becomes a call: rounding to an integer is done by adding 1.5 * 2^23,
// whose units are whole numbers, and fused operations are asked for only where the processor has them. Comparisons and
// selects are ordered so that a NaN passes through. The coefficients were fitted by the Remez exchange algorithm for
// the least largest relative error, with the leading ones fixed, then rounded to f32.
#include "codegen/cpu/math.h"

#include <bit>
#include <initializer_list>
#include <limits>

namespace kerf::codegen::cpu {

namespace {

/// Vector arithmetic on values that share one shape (scalar or <W x ...>), written as expressions.
class Emit {
 public:
  Emit(llvm::IRBuilder<>& b, llvm::Value* like, const CpuInfo& cpu) : b(b), cpu(cpu) {
    if (auto* v = llvm::dyn_cast<llvm::FixedVectorType>(like->getType())) width = v->getNumElements();
  }

  llvm::Type* shaped(llvm::Type* element) const { return width ? llvm::FixedVectorType::get(element, width) : element; }
  llvm::Type* float_type() const { return shaped(b.getFloatTy()); }
  llvm::Type* int_type() const { return shaped(b.getInt32Ty()); }
  llvm::Type* short_type() const { return shaped(b.getInt16Ty()); }

  llvm::Value* number(float x) const { return llvm::ConstantFP::get(float_type(), llvm::APFloat(x)); }
  llvm::Value* integer(std::uint32_t x) const { return llvm::ConstantInt::get(int_type(), x); }
  llvm::Value* bits(llvm::Value* x) const { return b.CreateBitCast(x, int_type()); }
  llvm::Value* from_bits(llvm::Value* x) const { return b.CreateBitCast(x, float_type()); }
  llvm::Value* fma(llvm::Value* x, llvm::Value* y, llvm::Value* z) const { return emit_fma(b, x, y, z, cpu); }
  llvm::Value* fma(llvm::Value* x, float y, llvm::Value* z) const { return fma(x, number(y), z); }

  /// c[0] + c[1] x + c[2] x^2 + ...
  llvm::Value* polynomial(llvm::Value* x, std::initializer_list<float> c) const {
    llvm::Value* sum = number(std::data(c)[c.size() - 1]);
    for (std::size_t i = c.size() - 1; i-- > 0;) sum = fma(sum, x, number(std::data(c)[i]));
    return sum;
  }
  /// NaN stays NaN.
  llvm::Value* clamp(llvm::Value* x, float low, float high) const {
    x = b.CreateSelect(b.CreateFCmpOLT(number(high), x), number(high), x);
    return b.CreateSelect(b.CreateFCmpOGT(number(low), x), number(low), x);
  }

  llvm::IRBuilder<>& b;
  const CpuInfo& cpu;
  unsigned width = 0;
};

constexpr float log2_e = 0x1.715476p+0f;
// ln 2 in two parts; the first has 16 bits, so that its product with a whole number below 2^8 is exact.
constexpr float ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f;

/// The scalef instruction for exactly this shape, or nothing: p * 2^n rounded once, n whole.
llvm::Value* scale_by_instruction(Emit& e, llvm::Value* p, llvm::Value* n) {
  if (!e.cpu.x86 || e.cpu.lanes != 16) return nullptr;
  llvm::Intrinsic::ID id;
  switch (e.width) {
    case 16: id = llvm::Intrinsic::x86_avx512_mask_scalef_ps_512; break;
    case 8: id = llvm::Intrinsic::x86_avx512_mask_scalef_ps_256; break;
    case 4: id = llvm::Intrinsic::x86_avx512_mask_scalef_ps_128; break;
    default: return nullptr;
  }
  llvm::Type* mask = e.b.getIntNTy(std::max(8u, e.width));
  llvm::SmallVector<llvm::Value*, 5> args{p, n, llvm::Constant::getNullValue(p->getType()),
                                          llvm::ConstantInt::getAllOnesValue(mask)};
  constexpr std::uint32_t current_rounding = 4;
  if (e.width == 16) args.push_back(e.b.getInt32(current_rounding));
  return e.b.CreateIntrinsic(id, {}, args);
}

}  // namespace

llvm::Value* emit_fma(llvm::IRBuilder<>& b, llvm::Value* x, llvm::Value* y, llvm::Value* z, const CpuInfo& cpu) {
  if (cpu.fma) return b.CreateIntrinsic(llvm::Intrinsic::fma, {x->getType()}, {x, y, z});
  return b.CreateFAdd(b.CreateFMul(x, y), z);
}

namespace {
// `chosen` is (x > y ? x : y) or the like: one instruction on x86, which gives y where either is NaN, so that only x is
// left to look at. All bits set is a NaN that x86 masks in with a single `or`.
llvm::Value* nan_if_nan(llvm::IRBuilder<>& b, llvm::Value* x, llvm::Value* chosen) {
  llvm::Type* floats = x->getType();
  llvm::Type* ints = floats->getWithNewType(b.getInt32Ty());
  llvm::Value* bits =
      b.CreateSelect(b.CreateFCmpUNO(x, x), llvm::ConstantInt::getAllOnesValue(ints), b.CreateBitCast(chosen, ints));
  return b.CreateBitCast(bits, floats);
}
}  // namespace

llvm::Value* emit_max(llvm::IRBuilder<>& b, llvm::Value* x, llvm::Value* y) {
  return nan_if_nan(b, x, b.CreateSelect(b.CreateFCmpOGT(x, y), x, y));
}

llvm::Value* emit_min(llvm::IRBuilder<>& b, llvm::Value* x, llvm::Value* y) {
  return nan_if_nan(b, x, b.CreateSelect(b.CreateFCmpOLT(x, y), x, y));
}

// x = n ln 2 + r with n whole and |r| <= ln 2 / 2; exp x = 2^n exp r.
llvm::Value* emit_exp(llvm::IRBuilder<>& b, llvm::Value* x, const CpuInfo& cpu) {
  Emit e(b, x, cpu);
  x = e.clamp(x, -104.5f, 89.0f);  // past these the result is 0 and inf all the same

  // The sum holds n + 254 in its low bits.
  constexpr float shifter = 0x1.8p23f + 254;
  llvm::Value* shifted = e.fma(x, log2_e, e.number(shifter));
  llvm::Value* n = b.CreateFSub(shifted, e.number(shifter));
  llvm::Value* r = e.fma(n, -ln2_low, e.fma(n, -ln2_high, x));
  llvm::Value* p =
      e.polynomial(r, {1.0f, 1.0f, 0x1.fffffcp-2f, 0x1.555494p-3f, 0x1.555892p-5f, 0x1.1233a2p-7f, 0x1.6a475cp-10f});
  if (llvm::Value* scaled = scale_by_instruction(e, p, n)) return scaled;

  // n + 254 = k1 + k2, each a valid biased exponent. p 2^k1 is exact and the last product rounds once, so that
  // subnormal results are right too.
  llvm::Value* k = e.bits(shifted);
  llvm::Value* k1 = b.CreateLShr(k, e.integer(1));
  llvm::Value* k2 = b.CreateSub(k, k1);
  p = b.CreateFMul(p, e.from_bits(b.CreateShl(k1, e.integer(23))));
  return b.CreateFMul(p, e.from_bits(b.CreateShl(k2, e.integer(23))));
}

// x = 2^n (1 + f) with 1 + f in [sqrt 1/2, sqrt 2); log x = n ln 2 + f - f^2/2 + f^3 q(f).
llvm::Value* emit_log(llvm::IRBuilder<>& b, llvm::Value* x, const CpuInfo& cpu) {
  Emit e(b, x, cpu);
  llvm::Value* subnormal = b.CreateFCmpOLT(x, e.number(std::numeric_limits<float>::min()));
  llvm::Value* u = e.bits(b.CreateSelect(subnormal, b.CreateFMul(x, e.number(0x1p23f)), x));

  constexpr auto sqrt_half = std::bit_cast<std::uint32_t>(0x1.6a09e6p-1f);
  llvm::Value* exponent = b.CreateAShr(b.CreateSub(u, e.integer(sqrt_half)), e.integer(23));
  llvm::Value* m = e.from_bits(b.CreateSub(u, b.CreateShl(exponent, e.integer(23))));
  llvm::Value* f = b.CreateFSub(m, e.number(1.0f));
  llvm::Value* n = b.CreateFAdd(b.CreateSIToFP(exponent, e.float_type()),
                                b.CreateSelect(subnormal, e.number(-23.0f), e.number(0.0f)));

  llvm::Value* q = e.polynomial(f, {0x1.555554p-2f, -0x1.000226p-2f, 0x1.99a01cp-3f, -0x1.547294p-3f, 0x1.22d870p-3f,
                                    -0x1.0d8030p-3f, 0x1.056590p-3f, -0x1.38ec8ap-4f});
  llvm::Value* f2 = b.CreateFMul(f, f);
  llvm::Value* tail = b.CreateFMul(b.CreateFMul(f, f2), q);
  tail = e.fma(n, ln2_low, tail);
  tail = e.fma(f2, -0.5f, tail);
  llvm::Value* result = e.fma(n, ln2_high, b.CreateFAdd(f, tail));

  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  result = b.CreateSelect(b.CreateFCmpULT(x, e.number(0.0f)), e.number(nan), result);
  result = b.CreateSelect(b.CreateFCmpOEQ(x, e.number(0.0f)), e.number(-inf), result);
  return b.CreateSelect(b.CreateFCmpOEQ(x, e.number(inf)), e.number(inf), result);
}

// Near 0 an odd polynomial, elsewhere 1 - 2 / (exp(2|x|) + 1); the sign is put back at the end.
llvm::Value* emit_tanh(llvm::IRBuilder<>& b, llvm::Value* x, const CpuInfo& cpu) {
  Emit e(b, x, cpu);
  llvm::Value* sign = b.CreateAnd(e.bits(x), e.integer(0x80000000));
  llvm::Value* a = e.from_bits(b.CreateAnd(e.bits(x), e.integer(0x7fffffff)));

  llvm::Value* a2 = b.CreateFMul(a, a);
  llvm::Value* q = e.polynomial(
      a2, {-0x1.555556p-2f, 0x1.1112b2p-3f, -0x1.ba838ap-5f, 0x1.6a8876p-6f, -0x1.2fb9e2p-7f, 0x1.9ce9a0p-9f});
  llvm::Value* near = e.fma(b.CreateFMul(a, a2), q, a);

  llvm::Value* denominator = b.CreateFAdd(emit_exp(b, b.CreateFAdd(a, a), cpu), e.number(1.0f));
  llvm::Value* far = b.CreateFSub(e.number(1.0f), b.CreateFDiv(e.number(2.0f), denominator));

  llvm::Value* result = b.CreateSelect(b.CreateFCmpOLT(a, e.number(0.625f)), near, far);
  return e.from_bits(b.CreateOr(e.bits(result), sign));
}

llvm::Value* emit_widen(llvm::IRBuilder<>& b, llvm::Value* bits, DType from, const CpuInfo& cpu) {
  Emit e(b, bits, cpu);
  if (from == DType::f16 && cpu.f16c)
    return b.CreateFPExt(b.CreateBitCast(bits, e.shaped(b.getHalfTy())), e.float_type());
  llvm::Value* wide = b.CreateZExt(bits, e.int_type());
  if (from == DType::bf16) return e.from_bits(b.CreateShl(wide, e.integer(16)));

  // The f16 exponent and mantissa, read as those of an f32, are the value times 2^-112, subnormals too.
  llvm::Value* sign = b.CreateShl(b.CreateAnd(wide, e.integer(0x8000)), e.integer(16));
  llvm::Value* magnitude = b.CreateShl(b.CreateAnd(wide, e.integer(0x7fff)), e.integer(13));
  llvm::Value* value = e.bits(b.CreateFMul(e.from_bits(magnitude), e.number(0x1p112f)));
  llvm::Value* not_finite = b.CreateICmpSGE(magnitude, e.integer(0x7c00 << 13));
  value = b.CreateOr(value, b.CreateSelect(not_finite, e.integer(0x7f800000), e.integer(0)));
  return e.from_bits(b.CreateOr(value, sign));
}

llvm::Value* emit_narrow(llvm::IRBuilder<>& b, llvm::Value* x, DType to, const CpuInfo& cpu) {
  Emit e(b, x, cpu);
  if (to == DType::f16 && cpu.f16c) return b.CreateBitCast(b.CreateFPTrunc(x, e.shaped(b.getHalfTy())), e.short_type());
  llvm::Value* u = e.bits(x);
  if (to == DType::bf16) {
    // Half a unit in the last place, or just less where the last bit is even; the carry may reach the exponent.
    llvm::Value* odd = b.CreateAnd(b.CreateLShr(u, e.integer(16)), e.integer(1));
    llvm::Value* rounded = b.CreateAdd(u, b.CreateAdd(odd, e.integer(0x7fff)));
    llvm::Value* quiet = b.CreateOr(u, e.integer(0x400000));
    rounded = b.CreateSelect(b.CreateFCmpUNO(x, x), quiet, rounded);
    return b.CreateTrunc(b.CreateAShr(rounded, e.integer(16)), e.short_type());  // signed: what packssdw takes
  }

  llvm::Value* sign = b.CreateAnd(b.CreateAShr(u, e.integer(16)), e.integer(0xffff8000));
  llvm::Value* a = b.CreateAnd(u, e.integer(0x7fffffff));
  llvm::Value* odd = b.CreateAnd(b.CreateLShr(a, e.integer(13)), e.integer(1));
  llvm::Value* half = b.CreateAdd(a, b.CreateAdd(odd, e.integer(0xfff - (112u << 23))));
  half = b.CreateLShr(half, e.integer(13));
  // Below 2^-14 the units are 2^-24, those of an f32 in [0.5, 1).
  llvm::Value* small = e.bits(b.CreateFAdd(e.from_bits(a), e.number(0.5f)));
  small = b.CreateSub(small, e.integer(std::bit_cast<std::uint32_t>(0.5f)));
  half = b.CreateSelect(b.CreateICmpSLT(a, e.integer(std::bit_cast<std::uint32_t>(0x1p-14f))), small, half);
  const auto rounds_to_inf = std::bit_cast<std::uint32_t>(65520.0f);
  half = b.CreateSelect(b.CreateICmpSGE(a, e.integer(rounds_to_inf)), e.integer(0x7c00), half);
  llvm::Value* payload = b.CreateAnd(b.CreateLShr(a, e.integer(13)), e.integer(0x3ff));
  half = b.CreateSelect(b.CreateFCmpUNO(x, x), b.CreateOr(payload, e.integer(0x7e00)), half);
  return b.CreateTrunc(b.CreateOr(half, sign), e.short_type());
}

}  // namespace kerf::codegen::cpu
