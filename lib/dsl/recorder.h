// Records one program: an operation per call, regions as they open and close. Types follow from ir::infer, so what the
// DSL accepts and what the verifier accepts are one set of rules; what is added here is what only the caller's side
// knows: whose object it is, the loop it was made in, promotion of dtypes, and the place in the caller's source.
#pragma once

#include <functional>
#include <optional>
#include <set>
#include <source_location>
#include <string>
#include <string_view>
#include <vector>

#include "kerf/dsl.h"
#include "lib/ir/ir.h"

namespace kerf::detail {

class Recorder {
 public:
  using Here = std::source_location;
  using OpKind = ir::OpKind;
  using ValueId = ir::ValueId;

  Recorder(std::string name, Here where);

  // ---- declarations ----

  Axis axis(std::string name, std::int64_t size, Here where);
  int tensor(ir::TensorInfo info, const std::vector<Axis>& axes, Here where);
  TileList list(std::string name, Axis row, std::int64_t row_extent, Axis column, std::int64_t column_extent,
                Here where);

  // ---- what the caller hands to the operation `what`; an error says what is wrong with it ----

  int id(Axis a, std::string_view what, Here where) const;
  int id(Tensor t, std::string_view what, Here where) const;
  int id(Packed t, std::string_view what, Here where) const;
  int id(TileList l, std::string_view what, Here where) const;
  ValueId id(Tile t, std::string_view what, Here where) const;
  ValueId id(Block b, std::string_view what, Here where) const;
  ValueId id(Kept k, std::string_view what, Here where) const;

  // ---- operations ----

  /// Records an operation with one result.
  ValueId record(ir::Op op, Here where, const ir::Type& wanted = {}, std::string name = {});
  ValueId record(OpKind kind, std::vector<ValueId> operands, Here where, const ir::Type& wanted = {});
  /// Records an operation without results.
  void record_effect(ir::Op op, Here where);

  ValueId cast(ValueId v, DType dtype, Here where);
  /// Operands brought to one dtype, then the operation. Operands before `first` keep theirs (the condition of where).
  Tile elementwise(OpKind kind, const std::vector<Operand>& operands, std::size_t first);
  Tile dot(const Operand& a, const Operand& b);
  Tile reduce(OpKind kind, const Operand& a, Axis axis);
  Tile full(const std::vector<Block>& blocks, double x, DType dtype, Here where);
  Tile load(Tensor t, const std::vector<Subscript>& subscripts, Here where);
  Tile load(Packed t, const std::vector<Subscript>& subscripts, Here where);
  void store(Tensor t, const std::vector<Subscript>& subscripts_and_value, Here where);
  void store(Packed t, const std::vector<Subscript>& subscripts_and_value, Here where);

  // ---- structure ----

  Block parallel(Axis axis, std::int64_t extent, Here where);
  ProgramBuilder::KeptTile parallel(TileList list, Here where);
  Block whole(Axis axis, Here where);
  Tile size(Axis axis, Here where);

  ir::Op loop_over(Axis axis, std::int64_t extent, Here where) const;
  ir::Op loop_over(AxisPart part, std::int64_t extent, Here where) const;
  ir::Op loop_over(KeptRun run, Here where) const;
  /// Opens the loop and returns the arguments of its region: [entry], block, carried tiles.
  std::vector<ValueId> begin_loop(ir::Op op, const std::vector<Tile>& init, Here where);
  /// Closes it and returns its results.
  std::vector<Tile> end_loop(const std::vector<Tile>& next);
  void when(const Operand& condition, const std::function<void()>& body);
  Program finish(Here where);

 private:
  struct Scope {
    std::string_view kind;  // "loop", "when"
    ir::Place place;
    bool open;
  };
  struct Frame {
    ir::Op op;  // the loop or when; unused for the program itself
    ir::Region region;
    int scope;
  };

  const ir::Type& type(ValueId v) const { return program_.type(v); }
  std::string text(const ir::Type& t) const { return ir::to_text(program_, t); }
  const std::string& axis_name(int a) const { return program_.axes[static_cast<std::size_t>(a)].name; }
  const Scope& scope(ValueId v) const {
    return scopes_[static_cast<std::size_t>(scope_of_[static_cast<std::size_t>(v)])];
  }

  void must_be_open(std::string_view what, Here where) const;
  /// A program with the declarations so far and nothing else, to try one more on.
  ir::Program declarations(Here where) const;
  /// An object numbered `id` of `count` made here.
  void mine(const Recorder* owner, int id, std::size_t count, std::string_view thing, std::string_view what,
            Here where) const;
  ValueId value(const Recorder* owner, ValueId v, std::string_view thing, std::string_view what, Here where) const;
  /// Carried tile `i` as the body of the loop at `place` returns it.
  ValueId returned(Tile t, std::size_t i, const ir::Place& place) const;
  /// The type of the result; sets the operation's place.
  ir::Type check(ir::Op& op, Here where, const ir::Type& wanted) const;
  void check_first(Here where) const;

  ValueId constant(double x, DType dtype, std::string_view what, Here where);
  ValueId half_to_f32(ValueId v, Here where);
  ValueId subscript(const Subscript& s, std::string_view what, std::string_view tensor, Here where) const;
  Tile load(OpKind kind, int tensor, const std::vector<Subscript>& subscripts, Here where);
  void store(OpKind kind, int tensor, const std::vector<Subscript>& subscripts_and_value, Here where);

  ValueId new_value(const ir::Type& type, std::string name = {});
  /// The axis in lower case, with a number behind it from the second on: n, n2, n3.
  std::string block_name(int axis);
  std::string fresh_name(const std::string& base);
  /// Values for a kept tile and its row and column block.
  std::vector<ValueId> list_values(int list, bool row, bool column);

  void push(ir::Op op) { frames_.back().region.ops.push_back(std::move(op)); }
  void open(std::string_view kind, ir::Op op);
  ir::Op close();

  ir::Program program_;
  std::vector<Frame> frames_;  // open regions, the program's own first
  std::vector<Scope> scopes_;  // every region ever opened
  std::vector<int> scope_of_;  // by value
  std::set<std::string> value_names_;
  std::optional<ir::Place> finished_;
};

}  // namespace kerf::detail
