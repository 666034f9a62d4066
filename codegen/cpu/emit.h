// Tile IR to LLVM IR for the CPU: one function that runs instances [begin, end) of a program. Only codegen/cpu includes
// this.
#pragma once

#include <functional>
#include <optional>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "codegen/cpu/math.h"
#include "codegen/cpu/plan.h"
#include "codegen/emit.h"
#include "codegen/llvm.h"
#include "lib/ir/ir.h"

namespace kerf::codegen::cpu {

/// One axis of something in memory, as seen from a tile: element i of the tile lies at i * stride, or where the index
/// tile says; only the first `limit` exist.
struct ViewDim {
  int axis = -1;
  std::int64_t extent = 0;
  llvm::Value* stride = nullptr;  // elements, i64
  llvm::Value* limit = nullptr;   // i64 in [0, extent]; null: all exist
  ir::ValueId indices = -1;       // gather: a tile of indices, in memory
  llvm::Value* size = nullptr;    // gather: indices outside [0, size) do not exist
  bool unit = false;              // stride is 1
};
/// A tile in a tensor, a packed tile or a buffer, not copied.
struct View {
  llvm::Value* base = nullptr;
  DType dtype = DType::f32;
  bool wide_storage = false;  // a buffer: bf16 and f16 lie there as f32
  std::vector<ViewDim> dims;
  double fill = 0;
  const ViewDim* dim(int axis) const;
};

/// The packed operands of a dot. lanes: panels of MicroShape::panel() columns, inside a panel k / pair steps of
/// panel x pair elements. rows: row m at m * row_stride, step k at k * k_stride.
struct PackedLanes {
  llvm::Value* base = nullptr;
  llvm::Value* k_limit = nullptr;  // null: all
  llvm::Value* limit = nullptr;    // columns that are not zero; null: all
};
struct PackedRows {
  llvm::Value* base = nullptr;
  llvm::Value* k_limit = nullptr;
  llvm::Value* limit = nullptr;
  std::int64_t row_stride = 0, k_stride = 0;  // in elements of one step (pair elements of the packed type)
};

/// math.h as codegen/emit.h wants it.
class CpuMath final : public Math {
 public:
  explicit CpuMath(const CpuInfo& cpu) : cpu_(cpu) {}
  using B = llvm::IRBuilder<>;
  using V = llvm::Value*;
  V exp(B& b, V x) const override { return emit_exp(b, x, cpu_); }
  V log(B& b, V x) const override { return emit_log(b, x, cpu_); }
  V tanh(B& b, V x) const override { return emit_tanh(b, x, cpu_); }
  V max(B& b, V x, V y) const override { return emit_max(b, x, y); }
  V min(B& b, V x, V y) const override { return emit_min(b, x, y); }
  V widen(B& b, V bits, DType from) const override { return emit_widen(b, bits, from, cpu_); }
  V narrow(B& b, V x, DType to) const override { return emit_narrow(b, x, to, cpu_); }

 private:
  const CpuInfo& cpu_;
};

class Emitter {
 public:
  Emitter(const ir::Program& p, const Schedule& schedule, const CpuInfo& cpu, llvm::Module& module);
  /// Adds the function `name`; returns the scratch it needs, in bytes.
  std::size_t run(const std::string& name);
  llvm::Function* function() const { return fn_; }

 private:
  using Value = llvm::Value;
  /// A place in a computation over tiles: an index for each axis, one of them the first of `width` lanes.
  struct Point {
    std::vector<Value*> index;
    int lane = -1;
    int width = 1;
  };
  struct Rep {
    Value* number = nullptr;  // block: its number along the axis; entry: which kept tile; scalar: its value
    Value* limit = nullptr;   // block: indices inside the axis; null: all
    Value* base = nullptr;    // memory, staged: the buffer
    Layout layout;            // memory
    std::optional<View> view;
    std::optional<PackedLanes> lanes;  // take
    std::optional<PackedRows> rows;    // take
  };
  struct Memo {
    std::unordered_map<ir::ValueId, Value*> values;
  };

  // Small things (emit_basics.cpp)
  Value* c64(std::int64_t x) { return b_.getInt64(static_cast<std::uint64_t>(x)); }
  Value* splat(Value* x, int width);
  Value* iota(llvm::Type* element, int width);
  Value* min64(Value* x, Value* y);
  Value* clamp64(Value* x, Value* low, Value* high);
  llvm::Type* buffer_type(DType t);  // one element in scratch
  llvm::Type* tensor_type(DType t);  // one element in a tensor
  std::int64_t buffer_bytes(DType t);
  Value* element_ptr(llvm::Type* element, Value* base, Value* offset);
  Value* argument(std::int64_t slot);
  Value* pointer_argument(std::int64_t slot);
  Value* allocate(std::int64_t bytes);
  Value* axis_size(int axis);
  Value* block_count(int axis, std::int64_t extent);
  Rep make_block(int axis, std::int64_t extent, Value* number);
  void loop(Value* begin, Value* end, std::int64_t step, const std::function<void(Value*)>& body);
  /// Lanes start..start+width below limit.
  Value* lane_mask(Value* start, Value* limit, int width);

  // Values at a point (emit_point.cpp)
  Value* eval(ir::ValueId v, const Point& pt, Memo& memo);
  Value* eval_new(ir::ValueId v, const Point& pt, Memo& memo);
  Value* eval_op(const ir::Op& op, const Point& pt, Memo& memo);
  Value* eval_memory(const Rep& rep, DType dtype, const Point& pt);
  Value* eval_view(const View& view, const Point& pt);
  Value* load_vector(llvm::Type* element, Value* ptr, int width, Value* mask, Value* otherwise);
  void store_vector(Value* x, Value* ptr, Value* mask);
  Value* to_compute(Value* raw, DType t, bool wide_storage);
  Value* to_tensor(Value* x, DType t);
  Value* to_buffer(Value* x, DType t);
  Value* index_of(ir::ValueId indices, const Point& pt);
  /// Offset of a point in a view and whether it exists (null: it does).
  Value* view_offset(const View& view, const Point& pt, Value*& exists, bool& contiguous);

  // Operations (emit.cpp, emit_loops.cpp)
  void region(const ir::Region& r);
  void operation(const ir::Op& op);
  void emit_grid();
  void emit_loop(const ir::Op& op);
  void emit_load(const ir::Op& op);
  void emit_load_packed(const ir::Op& op);
  void emit_store(const ir::Op& op);
  void emit_reduce(const ir::Op& op);
  void emit_running_sum(const ir::Op& op);
  void emit_stage(const ir::Op& op);
  void emit_take(const ir::Op& op);
  /// `staged`: the block of the axis that a stage walks.
  View tensor_view(const ir::Op& op, std::size_t first_subscript, const Rep* staged);
  View packed_view(const ir::Op& op, ir::ValueId entry);
  View memory_view(ir::ValueId v);
  /// Puts every element of v into a buffer.
  void materialize(ir::ValueId v, Value* base, const Layout& layout);
  Rep& make_memory(ir::ValueId v);
  /// Calls body at every point of the axes in order, the lane axis last, in steps of full vectors.
  void each_point(const std::vector<ir::AxisExtent>& axes, const std::function<void(const Point&)>& body);
  Point scalar_point();
  Value* horizontal(ir::OpKind kind, Value* x);

  // Dots (dot.cpp)
  void emit_dot(const ir::Op& op);
  /// The operand as a view that can be packed: at most the two axes of the dot, one of them contiguous, filled with 0.
  View operand_view(ir::ValueId v, int k, int own);
  PackedLanes pack_lanes(const View& x, const DotPlan& d, std::int64_t k_extent, std::int64_t extent, Value* to);
  PackedRows pack_rows(const View& y, const DotPlan& d, std::int64_t k_extent, std::int64_t extent, Value* to);
  std::int64_t packed_lanes_bytes(bool pairs, std::int64_t k_extent, std::int64_t extent) const;
  std::int64_t packed_rows_bytes(bool pairs, std::int64_t k_extent, std::int64_t extent) const;
  struct Micro {
    const PackedLanes& x;
    const PackedRows& y;
    bool pairs;
    std::int64_t steps;  // of one packed panel
    Value* k_steps;      // to do, a multiple of the unrolling
    Value* out;
    std::int64_t out_stride;
    bool add;
  };
  void micro_kernel(const Micro& m, Value* panel, Value* row, int rows);
  struct Line {  // one row of a view along some axis: where it begins and whether it exists
    Value* ptr;
    Value* exists;  // null: it does
  };
  /// Row i of a view along `axis`, from the first element of its other axis. Past `end` rows do not exist.
  Line line(const View& v, int axis, Value* i, bool may_pass_end);
  void transpose(std::vector<Value*>& rows);
  /// min(limit, extent) rounded up to `step`; a constant when there is no limit.
  Value* bound(Value* limit, std::int64_t extent, std::int64_t step);
  void zero_tile(Value* base, std::int64_t elements);

  const ir::Program& p_;
  const Schedule& schedule_;
  CpuInfo cpu_;
  CpuMath math_{cpu_};
  Plan plan_;
  llvm::Module& module_;
  llvm::LLVMContext& context_;
  llvm::IRBuilder<> b_;
  llvm::Function* fn_ = nullptr;
  Value* args_ = nullptr;
  Value* scratch_ = nullptr;
  std::int64_t scratch_now_ = 0, scratch_most_ = 0;
  std::vector<Rep> reps_;
  std::vector<Value*> axis_sizes_;
  std::unordered_map<std::int64_t, Value*> arguments_;
  std::unordered_set<ir::ValueId> grows_;  // carried values summed where they lie
  Rep& rep(ir::ValueId v) { return reps_[static_cast<std::size_t>(v)]; }
};

/// Register block for the target, as far as the schedule leaves it open.
MicroShape micro_shape(const CpuInfo& cpu, const Schedule& schedule);

}  // namespace kerf::codegen::cpu
