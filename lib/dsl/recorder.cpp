#include "lib/dsl/recorder.h"

#include <fmt/format.h>

#include <cctype>
#include <cmath>
#include <memory>
#include <utility>

#include "kerf/error.h"

namespace kerf::detail {

namespace {

using Here = std::source_location;
using ir::OpKind;
using ir::ValueId;

bool is_half(DType t) { return t == DType::bf16 || t == DType::f16; }

ir::Place place_of(Here where) {
  const std::string_view file = where.file_name();
  return {std::string(file.substr(file.find_last_of('/') + 1)), static_cast<int>(where.line())};
}

ir::Op make(OpKind kind, std::vector<ValueId> operands) {
  ir::Op op;
  op.kind = kind;
  op.operands = std::move(operands);
  return op;
}

/// As the dtype holds it.
double rounded(double x, DType dtype) {
  const float f = static_cast<float>(x);
  if (dtype == DType::bf16) return from_bf16(to_bf16(f));
  if (dtype == DType::f16) return from_f16(to_f16(f));
  return f;
}

void check_declared(const ir::Program& p, Here where) {
  try {
    ir::verify(p);
  } catch (const UsageError& e) {
    throw UsageError(where, e.what());
  }
}

void check_packed(std::string_view what, std::string_view tensor, std::size_t subscripts, Here where) {
  if (subscripts != 1)
    throw UsageError(where, fmt::format("{}: {} is packed and takes one kept tile, {} subscripts are given", what,
                                        tensor, subscripts));
}

}  // namespace

Recorder::Recorder(std::string name, Here where) {
  program_.name = std::move(name);
  scopes_.push_back({"program", ir::Place(), true});
  frames_.push_back({{}, {}, 0});
  check_declared(program_, where);
}

Axis Recorder::axis(std::string name, std::int64_t size, Here where) {
  ir::Program next = declarations(where);
  next.axes.push_back({std::move(name), size});
  check_declared(next, where);
  program_.axes = std::move(next.axes);
  return {this, static_cast<int>(program_.axes.size()) - 1};
}

int Recorder::tensor(ir::TensorInfo info, const std::vector<Axis>& axes, Here where) {
  ir::Program next = declarations(where);
  for (Axis a : axes) info.axes.push_back(id(a, info.name, where));
  next.tensors.push_back(std::move(info));
  check_declared(next, where);
  program_.tensors = std::move(next.tensors);
  return static_cast<int>(program_.tensors.size()) - 1;
}

TileList Recorder::list(std::string name, Axis row, std::int64_t row_extent, Axis column, std::int64_t column_extent,
                        Here where) {
  ir::Program next = declarations(where);
  const int r = id(row, name, where), c = id(column, name, where);
  next.lists.push_back({std::move(name), r, c, row_extent, column_extent});
  check_declared(next, where);
  program_.lists = std::move(next.lists);
  return {this, static_cast<int>(program_.lists.size()) - 1};
}

int Recorder::id(Axis a, std::string_view what, Here where) const {
  mine(a.recorder, a.id, program_.axes.size(), "axis", what, where);
  return a.id;
}

int Recorder::id(Tensor t, std::string_view what, Here where) const {
  mine(t.recorder, t.id, program_.tensors.size(), "tensor", what, where);
  return t.id;
}

int Recorder::id(Packed t, std::string_view what, Here where) const {
  mine(t.recorder, t.id, program_.tensors.size(), "packed tensor", what, where);
  return t.id;
}

int Recorder::id(TileList l, std::string_view what, Here where) const {
  mine(l.recorder, l.id, program_.lists.size(), "tile list", what, where);
  return l.id;
}

ValueId Recorder::id(Tile t, std::string_view what, Here where) const {
  return value(t.recorder, t.value, "tile", what, where);
}

ValueId Recorder::id(Block b, std::string_view what, Here where) const {
  return value(b.recorder, b.value, "block", what, where);
}

ValueId Recorder::id(Kept k, std::string_view what, Here where) const {
  return value(k.recorder, k.value, "kept tile", what, where);
}

ValueId Recorder::record(ir::Op op, Here where, const ir::Type& wanted, std::string name) {
  const ir::Type type = check(op, where, wanted);
  const ValueId v = new_value(type, std::move(name));
  op.results = {v};
  push(std::move(op));
  return v;
}

void Recorder::record_effect(ir::Op op, Here where) {
  check(op, where, {});
  push(std::move(op));
}

ValueId Recorder::record(OpKind kind, std::vector<ValueId> operands, Here where, const ir::Type& wanted) {
  return record(make(kind, std::move(operands)), where, wanted);
}

ValueId Recorder::constant(double x, DType dtype, std::string_view what, Here where) {
  ir::Op op = make(OpKind::constant, {});
  if (is_integer(dtype)) {
    const double limit = dtype == DType::i32 ? 0x1p31 : 0x1p53;  // an i64 past 2^53 has lost digits on its way here
    if (x != std::floor(x) || x < -limit || x >= limit)
      throw UsageError(
          where, fmt::format("{}: the number {} is no {}; cast the tile beside it first", what, x, name_of(dtype)));
    op.integer = static_cast<std::int64_t>(x);
  } else if (dtype == DType::boolean) {
    if (x != 0 && x != 1) throw UsageError(where, fmt::format("{}: the number {} is no bool", what, x));
    op.number = x;
  } else {
    op.number = rounded(x, dtype);
    if (std::isinf(op.number) && !std::isinf(x))
      throw UsageError(where, fmt::format("{}: the number {} is too large for {}", what, x, name_of(dtype)));
  }
  return record(std::move(op), where, ir::tile_type(dtype, {}));
}

ValueId Recorder::cast(ValueId v, DType dtype, Here where) {
  if (type(v).is_tile() && type(v).dtype == dtype) return v;
  return record(OpKind::cast, {v}, where, ir::tile_type(dtype, {}));
}

ValueId Recorder::half_to_f32(ValueId v, Here where) { return is_half(type(v).dtype) ? cast(v, DType::f32, where) : v; }

Tile Recorder::elementwise(OpKind kind, const std::vector<Operand>& operands, std::size_t first) {
  const std::string_view what = ir::info(kind).text;
  const Here where = operands[0].where;
  std::optional<DType> joined;
  for (std::size_t i = 0; i < operands.size(); ++i) {
    if (operands[i].is_number) continue;
    const DType t = type(id(operands[i].tile, what, operands[i].where)).dtype;
    if (i < first) continue;
    if (!joined) joined = is_half(t) ? DType::f32 : t;
    if (t == DType::i64 && joined == DType::i32) joined = t;
  }
  const bool arithmetic = ir::info(kind).rule == ir::Rule::arithmetic;
  DType number = joined.value_or(DType::f32);
  if (arithmetic && number == DType::boolean) number = DType::f32;  // so that the error is about the mask
  std::vector<ValueId> values;
  for (std::size_t i = 0; i < operands.size(); ++i) {
    const Operand& o = operands[i];
    if (o.is_number) {
      values.push_back(constant(o.number, i < first ? DType::boolean : number, what, o.where));
    } else if (i < first) {
      values.push_back(o.tile.value);
    } else {
      const ValueId v = half_to_f32(o.tile.value, o.where);
      values.push_back(joined == DType::i64 && type(v).dtype == DType::i32 ? cast(v, DType::i64, o.where) : v);
    }
  }
  return {this, record(kind, std::move(values), where)};
}

Tile Recorder::dot(const Operand& a, const Operand& b) {
  ValueId x = id(a.tile, "dot", a.where), y = id(b.tile, "dot", b.where);
  if (type(x).dtype != type(y).dtype && is_float(type(x).dtype) && is_float(type(y).dtype)) {
    x = half_to_f32(x, a.where);
    y = half_to_f32(y, b.where);
  }
  return {this, record(OpKind::dot, {x, y}, a.where)};
}

Tile Recorder::reduce(OpKind kind, const Operand& a, Axis axis) {
  const std::string_view what = ir::info(kind).text;
  ir::Op op = make(kind, {half_to_f32(id(a.tile, what, a.where), a.where)});
  op.axis = id(axis, what, a.where);
  return {this, record(std::move(op), a.where)};
}

Tile Recorder::full(const std::vector<Block>& blocks, double x, DType dtype, Here where) {
  std::vector<ir::AxisExtent> axes;
  for (Block b : blocks) {
    const ir::AxisExtent a = type(id(b, "full", where)).axes[0];
    for (const ir::AxisExtent& other : axes)
      if (other.axis == a.axis) throw UsageError(where, fmt::format("full: two blocks of {}", axis_name(a.axis)));
    axes.push_back(a);
  }
  const ValueId c = constant(x, dtype, "full", where);
  return {this, record(OpKind::splat, {c}, where, ir::tile_type(dtype, axes))};
}

Tile Recorder::load(Tensor t, const std::vector<Subscript>& subscripts, Here where) {
  return load(OpKind::load, id(t, "load", where), subscripts, where);
}

Tile Recorder::load(Packed t, const std::vector<Subscript>& subscripts, Here where) {
  return load(OpKind::load_packed, id(t, "load", where), subscripts, where);
}

void Recorder::store(Tensor t, const std::vector<Subscript>& subscripts, Here where) {
  store(OpKind::store, id(t, "store", where), subscripts, where);
}

void Recorder::store(Packed t, const std::vector<Subscript>& subscripts, Here where) {
  store(OpKind::store_packed, id(t, "store", where), subscripts, where);
}

Block Recorder::parallel(Axis axis, std::int64_t extent, Here where) {
  ir::Op op = make(OpKind::parallel, {});
  op.axis = id(axis, "parallel", where);
  op.extent = extent;
  check_first(where);
  return {this, record(std::move(op), where, {}, block_name(axis.id))};
}

ProgramBuilder::KeptTile Recorder::parallel(TileList list, Here where) {
  ir::Op op = make(OpKind::parallel, {});
  op.list = id(list, "parallel", where);
  check_first(where);
  check(op, where, {});
  op.results = list_values(list.id, true, true);
  const std::vector<ValueId> r = op.results;
  push(std::move(op));
  return {{this, r[0]}, {this, r[1]}, {this, r[2]}};
}

Block Recorder::whole(Axis axis, Here where) {
  ir::Op op = make(OpKind::whole, {});
  op.axis = id(axis, "whole", where);
  op.extent = program_.axes[static_cast<std::size_t>(axis.id)].size;
  return {this, record(std::move(op), where, {}, block_name(axis.id))};
}

Tile Recorder::size(Axis axis, Here where) {
  ir::Op op = make(OpKind::axis_size, {});
  op.axis = id(axis, "size", where);
  return {this, record(std::move(op), where)};
}

ir::Op Recorder::loop_over(Axis axis, std::int64_t extent, Here where) const {
  ir::Op op = make(OpKind::loop, {});
  op.axis = id(axis, "loop", where);
  op.extent = extent;
  return op;
}

ir::Op Recorder::loop_over(AxisPart part, std::int64_t extent, Here where) const {
  ir::Op op = loop_over(part.axis, extent, where);
  op.over = ir::LoopOver::part;
  op.operands = {id(part.at, "part", where)};
  op.count = part.count;
  return op;
}

ir::Op Recorder::loop_over(KeptRun run, Here where) const {
  ir::Op op = make(OpKind::loop, {});
  op.over = run.row ? ir::LoopOver::row : ir::LoopOver::column;
  op.list = id(run.list, "loop", where);
  op.operands = {id(run.at, "loop", where)};
  return op;
}

std::vector<ValueId> Recorder::begin_loop(ir::Op op, const std::vector<Tile>& init, Here where) {
  for (Tile t : init) op.operands.push_back(id(t, "loop", where));
  check(op, where, {});
  open("loop", std::move(op));
  ir::Op& loop = frames_.back().op;
  std::vector<ValueId> args;
  if (loop.list >= 0) {
    args = list_values(loop.list, loop.over == ir::LoopOver::column, loop.over == ir::LoopOver::row);
  } else {
    ir::Type block;
    block.kind = ir::Type::Kind::block;
    block.axes = {{loop.axis, loop.extent}};
    args = {new_value(block, block_name(loop.axis))};
  }
  for (std::size_t i = static_cast<std::size_t>(loop.anchors()); i < loop.operands.size(); ++i)
    args.push_back(new_value(type(loop.operands[i])));
  frames_.back().region.args = args;
  return args;
}

std::vector<Tile> Recorder::end_loop(const std::vector<Tile>& next) {
  const ir::Op& loop = frames_.back().op;
  const ir::Place place = loop.place;
  const std::size_t first = static_cast<std::size_t>(loop.anchors());
  if (frames_.size() < 2 || loop.kind != OpKind::loop || loop.operands.size() != first + next.size())
    throw UsageError("loop: it ends where no loop is open; an exception has left the body of one");
  std::vector<ir::Type> types;
  ir::Op yield = make(OpKind::yield, {});
  yield.place = place;
  for (std::size_t i = 0; i < next.size(); ++i) {
    types.push_back(type(loop.operands[first + i]));
    const ValueId v = returned(next[i], i, place);
    if (type(v) != types[i])
      throw UsageError(fmt::format(
          "{}:{}: loop: carried tile {} starts as {} and the body returns {}; both must be the same (full, zeros and "
          "cast make the start, reductions and cast the end)",
          place.file, place.line, i, text(types[i]), text(type(v))));
    yield.operands.push_back(v);
  }
  push(std::move(yield));
  ir::Op op = close();
  std::vector<Tile> out;
  for (const ir::Type& t : types) {
    op.results.push_back(new_value(t));
    out.push_back({this, op.results.back()});
  }
  push(std::move(op));
  return out;
}

void Recorder::when(const Operand& condition, const std::function<void()>& body) {
  const Here where = condition.where;
  if (condition.is_number) throw UsageError(where, "when: the condition is a number; it must be a scalar bool tile");
  ir::Op op = make(OpKind::when, {id(condition.tile, "when", where)});
  check(op, where, {});
  open("when", std::move(op));
  const std::size_t depth = frames_.size();
  body();
  if (frames_.size() != depth)
    throw UsageError(where, "when: a loop inside its body was never ended; an exception has left the body of the loop");
  ir::Op yield = make(OpKind::yield, {});
  yield.place = place_of(where);
  push(std::move(yield));
  push(close());
}

Program Recorder::finish(Here where) {
  must_be_open("finish", where);
  if (frames_.size() > 1) {
    const Scope& s = scopes_[static_cast<std::size_t>(frames_.back().scope)];
    throw UsageError(where, fmt::format("finish: the {} at {}:{} was never ended; an exception has left its body",
                                        s.kind, s.place.file, s.place.line));
  }
  std::set<int> stored;
  program_.body = frames_[0].region;
  ir::walk(std::as_const(program_.body), [&](const ir::Op& op) {
    if (ir::info(op.kind).effect == ir::Effect::write) stored.insert(op.tensor);
  });
  if (stored.empty()) throw UsageError(where, fmt::format("finish: program {} stores nothing", program_.name));
  for (std::size_t i = 0; i < program_.tensors.size(); ++i)
    if (program_.tensors[i].access != ir::Access::input && !stored.contains(static_cast<int>(i)))
      throw UsageError(where, fmt::format("finish: output {} is never stored to; store to it or leave it out",
                                          program_.tensors[i].name));
  ir::verify(program_);
  ir::verify_writes(program_);
  finished_ = place_of(where);
  return Program(std::make_shared<const ir::Program>(program_));
}

void Recorder::must_be_open(std::string_view what, Here where) const {
  if (finished_)
    throw UsageError(where,
                     fmt::format("{}: the program was finished at {}:{}", what, finished_->file, finished_->line));
}

ir::Program Recorder::declarations(Here where) const {
  must_be_open("declaration", where);
  ir::Program p;
  p.name = program_.name;
  p.axes = program_.axes;
  p.tensors = program_.tensors;
  p.lists = program_.lists;
  return p;
}

void Recorder::mine(const Recorder* owner, int id, std::size_t count, std::string_view thing, std::string_view what,
                    Here where) const {
  if (!owner) throw UsageError(where, fmt::format("{}: the {} was never set", what, thing));
  if (owner != this || id < 0 || static_cast<std::size_t>(id) >= count)
    throw UsageError(where,
                     fmt::format("{}: the {} belongs to another program, not to {}", what, thing, program_.name));
  must_be_open(what, where);
}

ValueId Recorder::value(const Recorder* owner, ValueId v, std::string_view thing, std::string_view what,
                        Here where) const {
  mine(owner, v, scope_of_.size(), thing, what, where);
  const Scope& s = scope(v);
  if (!s.open)
    throw UsageError(where, fmt::format("{}: the {} {} was made inside the {} at {}:{} and is used outside it; {}",
                                        what, thing, text(type(v)), s.kind, s.place.file, s.place.line,
                                        s.kind == "loop" ? "carry it out of the loop" : "move its use inside"));
  return v;
}

ValueId Recorder::returned(Tile t, std::size_t i, const ir::Place& place) const {
  if (!t.recorder)
    throw UsageError(
        fmt::format("{}:{}: loop: carried tile {} that the body returns was never set", place.file, place.line, i));
  if (t.recorder != this || t.value < 0 || static_cast<std::size_t>(t.value) >= scope_of_.size())
    throw UsageError(
        fmt::format("{}:{}: loop: carried tile {} that the body returns belongs to another program, not to {}",
                    place.file, place.line, i, program_.name));
  const Scope& s = scope(t.value);
  if (!s.open)
    throw UsageError(
        fmt::format("{}:{}: loop: carried tile {} that the body returns was made inside the {} at {}:{}; "
                    "carry it out of that",
                    place.file, place.line, i, s.kind, s.place.file, s.place.line));
  return t.value;
}

ir::Type Recorder::check(ir::Op& op, Here where, const ir::Type& wanted) const {
  must_be_open(ir::info(op.kind).text, where);
  op.place = place_of(where);
  return ir::infer(program_, op, wanted);
}

void Recorder::check_first(Here where) const {
  bool first = frames_.size() == 1;
  for (const ir::Op& op : frames_[0].region.ops) first = first && op.kind == OpKind::parallel;
  if (!first) throw UsageError(where, "parallel: must come before every other operation of the program");
}

ValueId Recorder::new_value(const ir::Type& type, std::string name) {
  scope_of_.push_back(frames_.back().scope);
  return program_.new_value(type, std::move(name));
}

std::string Recorder::block_name(int axis) {
  std::string name = axis_name(axis);
  for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return fresh_name(name);
}

std::string Recorder::fresh_name(const std::string& base) {
  std::string name = base;
  for (int i = 2; !value_names_.insert(name).second; ++i) name = fmt::format("{}{}", base, i);
  return name;
}

std::vector<ValueId> Recorder::list_values(int list, bool row, bool column) {
  const ir::ListInfo& l = program_.lists[static_cast<std::size_t>(list)];
  ir::Type entry, block;
  entry.kind = ir::Type::Kind::entry;
  entry.list = list;
  block.kind = ir::Type::Kind::block;
  std::vector<ValueId> values = {new_value(entry, fresh_name("k"))};
  if (row) {
    block.axes = {{l.row_axis, l.row_extent}};
    values.push_back(new_value(block, block_name(l.row_axis)));
  }
  if (column) {
    block.axes = {{l.column_axis, l.column_extent}};
    values.push_back(new_value(block, block_name(l.column_axis)));
  }
  return values;
}

void Recorder::open(std::string_view kind, ir::Op op) {
  scopes_.push_back({kind, op.place, true});
  frames_.push_back({std::move(op), {}, static_cast<int>(scopes_.size()) - 1});
}

ir::Op Recorder::close() {
  Frame f = std::move(frames_.back());
  frames_.pop_back();
  scopes_[static_cast<std::size_t>(f.scope)].open = false;
  f.op.regions.push_back(std::move(f.region));
  return std::move(f.op);
}

ValueId Recorder::subscript(const Subscript& s, std::string_view what, std::string_view tensor, Here where) const {
  if (const Block* b = std::get_if<Block>(&s)) return id(*b, what, where);
  if (const Tile* t = std::get_if<Tile>(&s)) return id(*t, what, where);
  if (const Kept* k = std::get_if<Kept>(&s)) return id(*k, what, where);
  if (std::holds_alternative<Fill>(s))
    throw UsageError(where, fmt::format("{}: a fill is the last argument of a load", what));
  throw UsageError(where,
                   fmt::format("{}: the number {} is no subscript of {}; write a block, or fill({}) for what lies "
                               "outside the tensor",
                               what, std::get<double>(s), tensor, std::get<double>(s)));
}

Tile Recorder::load(OpKind kind, int tensor, const std::vector<Subscript>& subscripts, Here where) {
  const ir::TensorInfo& t = program_.tensors[static_cast<std::size_t>(tensor)];
  ir::Op op = make(kind, {});
  op.tensor = tensor;
  const bool has_fill = !subscripts.empty() && std::holds_alternative<Fill>(subscripts.back());
  if (kind == OpKind::load_packed) check_packed("load", t.name, subscripts.size() - (has_fill ? 1 : 0), where);
  for (std::size_t i = 0; i < subscripts.size(); ++i) {
    const Fill* f = i + 1 == subscripts.size() ? std::get_if<Fill>(&subscripts[i]) : nullptr;
    if (f && kind == OpKind::load_packed)
      throw UsageError(where, fmt::format("load: {} is packed and takes no fill; its tiles are stored whole", t.name));
    op.operands.push_back(f ? constant(f->value, t.dtype, "fill", where)
                            : subscript(subscripts[i], "load", t.name, where));
  }
  return {this, record(std::move(op), where)};
}

void Recorder::store(OpKind kind, int tensor, const std::vector<Subscript>& arguments, Here where) {
  const ir::TensorInfo& t = program_.tensors[static_cast<std::size_t>(tensor)];
  const double* number = arguments.empty() ? nullptr : std::get_if<double>(&arguments.back());
  const Tile* tile = arguments.empty() ? nullptr : std::get_if<Tile>(&arguments.back());
  if (!number && !tile)
    throw UsageError(where, fmt::format("store: the last argument must be the tile that goes to {}", t.name));
  if (kind == OpKind::store_packed) check_packed("store", t.name, arguments.size() - 1, where);
  ir::Op op = make(kind, {number ? constant(*number, t.dtype, "store", where) : id(*tile, "store", where)});
  op.tensor = tensor;
  for (std::size_t i = 0; i + 1 < arguments.size(); ++i)
    op.operands.push_back(subscript(arguments[i], "store", t.name, where));
  record_effect(std::move(op), where);
}

}  // namespace kerf::detail
