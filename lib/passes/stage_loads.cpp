// stage_loads: what an outer loop would load again in each of its turns is loaded once and kept.
//
//   before:  loop V by 256 {                       after:  %s = stage e [%n, *] D by 256
//              loop D by 256 {                             loop V by 256 {
//                %x = load e [%n, %d]                        loop D by 256 {
//                %y = load c [%v, %d]                          %x = take %s, %d
//                ... dot %x, %y                                %y = load c [%v, %d]
//
// The load of e needs no block of V, but hoist cannot move it: it needs the block of the inner loop. All the blocks
// that the inner loop walks are loaded in front of the outermost loop that repeats them, and the inner loop takes one
// at a time. Backends keep them in the layout their `dot` reads, so the packing is not repeated either.
//
// Staged is a load of an `input` (nothing writes it meanwhile) that stands in the body of a loop over a whole axis of
// known size (so the copy's size is known too), with that loop's block as exactly one subscript, and the others defined
// in front of an outer loop with no `when` between. A copy above 8 MiB is not made: it would leave the cache before it
// is read again, and scratch is paid per thread. Out of bounds the copy holds the fill of the load.
#include <algorithm>
#include <utility>

#include "lib/passes/passes.h"
#include "lib/passes/rewrite.h"

namespace kerf::passes {

using namespace ir;

namespace {

constexpr std::int64_t max_bytes = std::int64_t{8} << 20;

class Stager {
 public:
  explicit Stager(ir::Program& p) : program_(p), defined_at_(p.values.size(), 0) { run(p.body); }

 private:
  /// A loop around the operation looked at, and what will stand in front of it.
  struct Around {
    bool is_loop;
    std::vector<Op> front;
  };

  void run(Region& region) {
    define(region.args);
    std::vector<Op> ops;
    for (Op& op : region.ops) {
      if (op.kind == OpKind::load && inner_ != nullptr) stage(op);
      if (op.kind == OpKind::constant) constant_[op.results.front()] = op;
      define(op.results);
      if (!op.regions.empty()) {
        around_.push_back({op.kind == OpKind::loop, {}});
        const Op* outside = std::exchange(inner_, op.kind == OpKind::loop ? &op : nullptr);
        for (Region& inner : op.regions) run(inner);
        inner_ = outside;
        std::move(around_.back().front.begin(), around_.back().front.end(), std::back_inserter(ops));
        around_.pop_back();
      }
      ops.push_back(std::move(op));
    }
    region.ops = std::move(ops);
  }

  void define(const std::vector<ValueId>& values) {
    for (ValueId v : values) defined_at_[static_cast<std::size_t>(v)] = around_.size();
  }
  std::size_t depth(ValueId v) const { return defined_at_[static_cast<std::size_t>(v)]; }

  /// Turns the load into a take where it can be staged. `inner_` is the loop whose body it stands in.
  void stage(Op& load) {
    const TensorInfo& tensor = program_.tensors[static_cast<std::size_t>(load.tensor)];
    if (tensor.access != Access::input || inner_->over != LoopOver::axis) return;
    if (program_.axes[static_cast<std::size_t>(inner_->axis)].size == unknown) return;

    const ValueId block = inner_->regions.front().args.front();
    const std::size_t rank = tensor.axes.size();
    if (std::count(load.operands.begin(), load.operands.end(), block) != 1) return;
    const auto at =
        static_cast<std::size_t>(std::find(load.operands.begin(), load.operands.end(), block) - load.operands.begin());
    if (tensor.axes[at] != inner_->axis) return;

    // The outermost loop that the other subscripts do not need; around_.back() is the inner loop itself.
    std::size_t outer = 0;
    Op stage;
    for (std::size_t i = 0; i < rank; ++i) {
      if (i == at) continue;
      if (program_.type(load.operands[i]).has(inner_->axis)) return;
      outer = std::max(outer, depth(load.operands[i]));
      stage.operands.push_back(load.operands[i]);
    }
    for (std::size_t i = outer; i < around_.size(); ++i)
      if (!around_[i].is_loop) outer = i + 1;
    if (outer + 1 >= around_.size() || bytes(load) > max_bytes) return;

    stage.kind = OpKind::stage;
    stage.axis = inner_->axis;
    stage.extent = inner_->extent;
    stage.tensor = load.tensor;
    stage.place = load.place;
    if (load.operands.size() > rank) stage.operands.push_back(fill_for(load.operands[rank], outer));

    load.kind = OpKind::take;
    load.operands = {place(stage, around_[outer].front), block};
    load.tensor = -1;
  }

  /// Of the whole copy, of which the load gives one block.
  std::int64_t bytes(const Op& load) const {
    const Type& tile = program_.type(load.results.front());
    const std::int64_t size = program_.axes[static_cast<std::size_t>(inner_->axis)].size;
    const std::int64_t blocks = (size - 1) / inner_->extent + 1;
    std::int64_t total = 0;
    return __builtin_mul_overflow(tile.elements() * size_of(tile.dtype), blocks, &total) ? max_bytes + 1 : total;
  }

  /// A fill is a constant; it is made again where it is not yet defined in front of around_[outer].
  ValueId fill_for(ValueId fill, std::size_t outer) {
    if (depth(fill) <= outer) return fill;
    Op again = constant_.at(fill);
    std::vector<Op>& front = around_[outer].front;
    for (const Op& op : front)
      if (op.kind == OpKind::constant && program_.type(op.results.front()) == program_.type(fill) &&
          op.number == again.number && op.integer == again.integer)
        return op.results.front();
    again.results = {new_value(program_.type(fill))};
    front.push_back(again);
    return again.results.front();
  }

  /// The staged value, made in front unless the same is there already.
  ValueId place(Op& stage, std::vector<Op>& front) {
    for (const Op& op : front)
      if (op.kind == OpKind::stage && op.tensor == stage.tensor && op.axis == stage.axis && op.extent == stage.extent &&
          op.operands == stage.operands)
        return op.results.front();
    const std::string& tensor = program_.tensors[static_cast<std::size_t>(stage.tensor)].name;
    stage.results = {new_value(infer(program_, stage), "staged_" + tensor)};
    front.push_back(stage);
    return stage.results.front();
  }

  ValueId new_value(Type type, std::string name = {}) {
    const ValueId v = program_.new_value(std::move(type), std::move(name));
    defined_at_.push_back(0);
    return v;
  }

  ir::Program& program_;
  std::map<ValueId, Op> constant_;       // the operations that make constants
  std::vector<std::size_t> defined_at_;  // by value: loops and whens around its definition
  std::vector<Around> around_;
  const Op* inner_ = nullptr;
};

}  // namespace

void stage_loads(ir::Program& p) { Stager{p}; }

}  // namespace kerf::passes
