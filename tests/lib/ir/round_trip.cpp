// Text to program to text: nothing is lost, nothing is added.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <bit>
#include <cmath>
#include <limits>
#include <set>
#include <string>

#include "kerf/error.h"
#include "lib/ir/ir.h"

using namespace kerf;

namespace {

// Every operation, every form of a loop, every kind of tensor and type.
constexpr std::string_view everything = R"(program everything
axis N
axis V = 1000
axis D = 7
axis S
list kept : [N by 4, V by 8]
input e : bf16 [N, D]
input h : f16 [N, D]
input target : i32 [N]
input wide : i64 [V]
input flag : bool [N]
input total : f32 []
input packed : f32 kept [N, V]
output dz : bf16 kept [V, N]
output lse : f32 [N]
inout de : f32 [N, D]
{
  %n = parallel N by 4 : block<N:4>
  %s = parallel S by 1 : block<S:1>
  %d = whole D : block<D:7>
  %3 = const -inf : f32
  %4 = const -100 : i32
  %5 = const true : bool
  %6 = const 0.1 : bf16
  %zero = const 0 : f32
  %rows = size N : i64
  %y = load target [%n] fill %4 : tile<N:4, i32>
  %x = load e [%n, %d] fill %6 : tile<N:4 x D:7, bf16>
  %t = load total [] : f32
  %g = load e [%y, %d] : tile<N:4 x D:7, bf16>
  %g_1 = splat %zero : tile<N:4, f32>
  %14 = stage e [%n, *] D by 2 : staged<N:4 x D/2, bf16>
  %15 = stage e [*, %d] N by 4 fill %6 : staged<N/4 x D:7, bf16>
  %m, %17 = loop V by 8 [%v : block<V:8>] (%m0 = %g_1, %20 = %t) {
    %i = index %v : tile<V:8, i32>
    %22 = in_bounds %v : tile<V:8, bool>
    %23 = splat %zero : tile<N:4 x V:8, f32>
    %24 = where %22, %23, %3 : tile<N:4 x V:8, f32>
    %25 = reduce_max %24 over V : tile<N:4, f32>
    %26 = max %m0, %25 : tile<N:4, f32>
    %27 = add %20, %t : f32
    yield %26, %27
  } : tile<N:4, f32>, f32
  %28 = loop V by 8 part %s of 3 [%29 : block<V:8>] (%30 = %m) {
    yield %30
  } : tile<N:4, f32>
  %31 = loop row %n of kept [%k : entry<kept>, %33 : block<V:8>] (%34 = %m) {
    %35 = load_packed packed [%k] : tile<N:4 x V:8, f32>
    %36 = cast %35 : tile<N:4 x V:8, bf16>
    store_packed dz [%k] %36
    %37 = reduce_sum %35 over V : tile<N:4, f32>
    %38 = add %34, %37 : tile<N:4, f32>
    yield %38
  } : tile<N:4, f32>
  loop D by 2 [%39 : block<D:2>] {
    %40 = take %14, %39 : tile<N:4 x D:2, bf16>
    %q = load e [%rows, %39] : tile<D:2, bf16>
    %42 = dot %40, %q : tile<N:4, f32>
    %w = dot %40, %q, %42 : tile<N:4, f32>
    yield
  }
  %44 = exp %31 : tile<N:4, f32>
  %45 = cast %44 : tile<N:4, bool>
  %46 = not %45 : tile<N:4, bool>
  %47 = reduce_any %46 over N : bool
  when %47 {
    store lse [%n] %44
    when %5 {
      store de [%n, %d] %zero
    }
  }
}
)";

}  // namespace

TEST_CASE("print gives back the text that was parsed, operation by operation") {
  const std::string once = ir::print(ir::parse(everything));
  CHECK(once == everything);
}
