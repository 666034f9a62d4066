// The public face of the DSL: free functions and ProgramBuilder, each handed to the recorder of its objects.
#include <fmt/format.h>

#include "kerf/dsl.h"
#include "kerf/error.h"
#include "lib/dsl/recorder.h"

namespace kerf {

using Here = std::source_location;
using ir::OpKind;
using ir::ValueId;

namespace detail {

namespace {

Recorder& recorder(Recorder* r, std::string_view what, std::string_view thing, Here where) {
  if (!r) throw UsageError(where, fmt::format("{}: the {} was never set", what, thing));
  return *r;
}

/// The recorder of the first tile among the operands.
Recorder& recorder(const std::vector<Operand>& operands, std::string_view what) {
  for (const Operand& o : operands)
    if (!o.is_number) return recorder(o.tile.recorder, what, "tile", o.where);
  throw UsageError(operands[0].where, fmt::format("{}: one operand must be a tile, and all are numbers", what));
}

Recorder& tile_recorder(const Operand& o, std::string_view what) {
  if (o.is_number)
    throw UsageError(o.where, fmt::format("{}: the operand must be a tile, not the number {}", what, o.number));
  return recorder(o.tile.recorder, what, "tile", o.where);
}

Tile elementwise(OpKind kind, const std::vector<Operand>& operands, std::size_t first = 0) {
  return recorder(operands, ir::info(kind).text).elementwise(kind, operands, first);
}

Tile reduce(OpKind kind, const Operand& a, Axis axis) {
  return tile_recorder(a, ir::info(kind).text).reduce(kind, a, axis);
}

}  // namespace

Tile load(Tensor t, std::vector<Subscript> s, Here where) {
  return recorder(t.recorder, "load", "tensor", where).load(t, s, where);
}
Tile load(Packed t, std::vector<Subscript> s, Here where) {
  return recorder(t.recorder, "load", "packed tensor", where).load(t, s, where);
}
void store(Tensor t, std::vector<Subscript> s, Here where) {
  recorder(t.recorder, "store", "tensor", where).store(t, s, where);
}
void store(Packed t, std::vector<Subscript> s, Here where) {
  recorder(t.recorder, "store", "packed tensor", where).store(t, s, where);
}

}  // namespace detail

using detail::elementwise;
using detail::reduce;

// ---- Block and Tile ----

Tile Block::index(DType dtype, Here where) const {
  detail::Recorder& r = detail::recorder(recorder, "index", "block", where);
  return {&r, r.record(OpKind::index, {r.id(*this, "index", where)}, where, ir::tile_type(dtype, {}))};
}
Tile Block::in_bounds(Here where) const {
  detail::Recorder& r = detail::recorder(recorder, "in_bounds", "block", where);
  return {&r, r.record(OpKind::in_bounds, {r.id(*this, "in_bounds", where)}, where)};
}

Tile Block::number(Here where) const {
  detail::Recorder& r = detail::recorder(recorder, "number", "block", where);
  return {&r, r.record(OpKind::number, {r.id(*this, "number", where)}, where)};
}

Tile full(Located<Block> a, double value, DType dtype) {
  return detail::recorder(a.value.recorder, "full", "block", a.where).full({a.value}, value, dtype, a.where);
}
Tile full(Located<Block> a, Block b, double value, DType dtype) {
  return detail::recorder(a.value.recorder, "full", "block", a.where).full({a.value, b}, value, dtype, a.where);
}
Tile zeros(Located<Block> a) { return full(a, 0.0); }
Tile zeros(Located<Block> a, Block b) { return full(a, b, 0.0); }

Tile operator+(Operand a, Operand b) { return elementwise(OpKind::add, {a, b}); }
Tile operator-(Operand a, Operand b) { return elementwise(OpKind::sub, {a, b}); }
Tile operator*(Operand a, Operand b) { return elementwise(OpKind::mul, {a, b}); }
Tile operator/(Operand a, Operand b) { return elementwise(OpKind::div, {a, b}); }
Tile operator-(Operand a) { return elementwise(OpKind::neg, {a}); }
Tile operator==(Operand a, Operand b) { return elementwise(OpKind::eq, {a, b}); }
Tile operator!=(Operand a, Operand b) { return elementwise(OpKind::ne, {a, b}); }
Tile operator<(Operand a, Operand b) { return elementwise(OpKind::lt, {a, b}); }
Tile operator<=(Operand a, Operand b) { return elementwise(OpKind::le, {a, b}); }
Tile operator>(Operand a, Operand b) { return elementwise(OpKind::gt, {a, b}); }
Tile operator>=(Operand a, Operand b) { return elementwise(OpKind::ge, {a, b}); }
Tile operator&&(Operand a, Operand b) { return elementwise(OpKind::logical_and, {a, b}); }
Tile operator||(Operand a, Operand b) { return elementwise(OpKind::logical_or, {a, b}); }
Tile operator!(Operand a) { return elementwise(OpKind::logical_not, {a}); }
Tile max(Operand a, Operand b) { return elementwise(OpKind::max, {a, b}); }
Tile min(Operand a, Operand b) { return elementwise(OpKind::min, {a, b}); }
Tile exp(Operand a) { return elementwise(OpKind::exp, {a}); }
Tile log(Operand a) { return elementwise(OpKind::log, {a}); }
Tile tanh(Operand a) { return elementwise(OpKind::tanh, {a}); }
Tile sqrt(Operand a) { return elementwise(OpKind::sqrt, {a}); }
Tile where(Operand cond, Operand a, Operand b) { return elementwise(OpKind::where, {cond, a, b}, 1); }

Tile cast(Operand a, DType dtype) {
  detail::Recorder& r = detail::tile_recorder(a, "cast");
  return {&r, r.cast(r.id(a.tile, "cast", a.where), dtype, a.where)};
}

Tile dot(Operand a, Operand b) {
  detail::tile_recorder(b, "dot");
  return detail::tile_recorder(a, "dot").dot(a, b);
}

Tile reduce_sum(Operand a, Axis axis) { return reduce(OpKind::reduce_sum, a, axis); }
Tile reduce_max(Operand a, Axis axis) { return reduce(OpKind::reduce_max, a, axis); }
Tile reduce_argmax(Operand a, Axis axis) { return reduce(OpKind::reduce_argmax, a, axis); }
Tile reduce_any(Operand a, Axis axis) { return reduce(OpKind::reduce_any, a, axis); }
Tile running_sum(Operand a, Axis axis) { return reduce(OpKind::running_sum, a, axis); }

// ---- ProgramBuilder ----

ProgramBuilder::ProgramBuilder(std::string name, Here where)
    : recorder_(std::make_unique<detail::Recorder>(std::move(name), where)) {}
ProgramBuilder::~ProgramBuilder() = default;

Axis ProgramBuilder::axis(std::string name, Here where) { return recorder_->axis(std::move(name), ir::unknown, where); }
Axis ProgramBuilder::axis(std::string name, std::int64_t size, Here where) {
  if (size < 1) throw UsageError(where, fmt::format("axis {} has size {}; a known size is at least 1", name, size));
  return recorder_->axis(std::move(name), size, where);
}

Tensor ProgramBuilder::input(std::string name, DType dtype, std::vector<Axis> axes, Here where) {
  return {recorder_.get(), recorder_->tensor({std::move(name), dtype, ir::Access::input, {}, -1}, axes, where)};
}
Tensor ProgramBuilder::output(std::string name, DType dtype, std::vector<Axis> axes, Here where) {
  return {recorder_.get(), recorder_->tensor({std::move(name), dtype, ir::Access::output, {}, -1}, axes, where)};
}
Tensor ProgramBuilder::inout(std::string name, DType dtype, std::vector<Axis> axes, Here where) {
  return {recorder_.get(), recorder_->tensor({std::move(name), dtype, ir::Access::inout, {}, -1}, axes, where)};
}
TileList ProgramBuilder::tile_list(std::string name, Axis row, std::int64_t row_extent, Axis column,
                                   std::int64_t column_extent, Here where) {
  return recorder_->list(std::move(name), row, row_extent, column, column_extent, where);
}
Packed ProgramBuilder::packed_input(std::string name, DType dtype, TileList list, std::vector<Axis> order, Here where) {
  const int id = recorder_->id(list, name, where);
  return {recorder_.get(), recorder_->tensor({std::move(name), dtype, ir::Access::input, {}, id}, order, where)};
}
Packed ProgramBuilder::packed_output(std::string name, DType dtype, TileList list, std::vector<Axis> order,
                                     Here where) {
  const int id = recorder_->id(list, name, where);
  return {recorder_.get(), recorder_->tensor({std::move(name), dtype, ir::Access::output, {}, id}, order, where)};
}
Packed ProgramBuilder::packed_inout(std::string name, DType dtype, TileList list, std::vector<Axis> order, Here where) {
  const int id = recorder_->id(list, name, where);
  return {recorder_.get(), recorder_->tensor({std::move(name), dtype, ir::Access::inout, {}, id}, order, where)};
}

Block ProgramBuilder::parallel(Axis axis, std::int64_t extent, Here where) {
  return recorder_->parallel(axis, extent, where);
}
ProgramBuilder::KeptTile ProgramBuilder::parallel(TileList list, Here where) {
  return recorder_->parallel(list, where);
}
Block ProgramBuilder::whole(Axis axis, Here where) { return recorder_->whole(axis, where); }
Tile ProgramBuilder::size(Axis axis, Here where) { return recorder_->size(axis, where); }

namespace {
std::vector<Tile> tiles(detail::Recorder* r, const std::vector<ValueId>& values, std::size_t first) {
  std::vector<Tile> out;
  for (std::size_t i = first; i < values.size(); ++i) out.push_back({r, values[i]});
  return out;
}
}  // namespace

ProgramBuilder::LoopScope ProgramBuilder::begin_loop(Axis axis, std::int64_t extent, std::vector<Tile> init,
                                                     Here where) {
  detail::Recorder* r = recorder_.get();
  const std::vector<ValueId> args = r->begin_loop(r->loop_over(axis, extent, where), init, where);
  return {{}, {r, args[0]}, tiles(r, args, 1)};
}
ProgramBuilder::LoopScope ProgramBuilder::begin_loop(AxisPart part, std::int64_t extent, std::vector<Tile> init,
                                                     Here where) {
  detail::Recorder* r = recorder_.get();
  const std::vector<ValueId> args = r->begin_loop(r->loop_over(part, extent, where), init, where);
  return {{}, {r, args[0]}, tiles(r, args, 1)};
}
ProgramBuilder::LoopScope ProgramBuilder::begin_loop(KeptRun run, std::vector<Tile> init, Here where) {
  detail::Recorder* r = recorder_.get();
  const std::vector<ValueId> args = r->begin_loop(r->loop_over(run, where), init, where);
  return {{r, args[0]}, {r, args[1]}, tiles(r, args, 2)};
}
std::vector<Tile> ProgramBuilder::end_loop(std::vector<Tile> next) { return recorder_->end_loop(next); }

void ProgramBuilder::when(Operand condition, const std::function<void()>& body) { recorder_->when(condition, body); }

Program ProgramBuilder::finish(Here where) { return recorder_->finish(where); }

// ---- Program ----

const ir::Program& Program::ir() const {
  if (!ir_) throw UsageError("the program is empty; ProgramBuilder::finish makes one");
  return *ir_;
}
const std::string& Program::name() const { return ir().name; }
std::string Program::text(bool places) const { return ir::print(ir(), places); }

}  // namespace kerf
