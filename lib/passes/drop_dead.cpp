// drop_dead: what no store depends on goes.
//
//   before:  %m, %s = loop V by 256 carry %a = %zero, %b = %zero { ... yield %a1, %b1 }     only %s is used
//   after:   %s = loop V by 256 carry %b = %zero { ... yield %b1 }                          and what made %a1 is gone
//
// A program is what it stores, so a value is alive if a store needs it: as an operand, through another live value, as
// the condition of a `when` or the anchor of a loop that is kept. A carried value is alive if its result is used behind
// the loop, or its argument by something alive inside; one that only feeds itself is not. Loops without live results
// and without stores go as a whole. `parallel` stays, used or not: it says how often the program runs.
#include <algorithm>

#include "lib/passes/passes.h"
#include "lib/passes/rewrite.h"

namespace kerf::passes {

using namespace ir;

namespace {

class Sweep {
 public:
  explicit Sweep(ir::Program& p) : alive_(p.values.size(), false) {
    do {
      changed_ = false;
      mark(p.body);
    } while (changed_);  // a carried value may turn out to be alive after what makes it was passed
    sweep(p.body);
  }

 private:
  bool alive(ValueId v) const { return alive_[static_cast<std::size_t>(v)]; }
  void keep(ValueId v) {
    if (alive(v)) return;
    alive_[static_cast<std::size_t>(v)] = true;
    changed_ = true;
  }
  bool any_alive(const std::vector<ValueId>& values) const {
    return std::any_of(values.begin(), values.end(), [&](ValueId v) { return alive(v); });
  }
  bool is_kept(const Op& op) const {
    switch (info(op.kind).effect) {
      case Effect::pure:
      case Effect::read: return any_alive(op.results);
      case Effect::write: return true;
      case Effect::control: break;
    }
    return op.regions.empty() || writes(op) || any_alive(op.results);
  }

  void mark(const Region& region) {
    for (auto op = region.ops.rbegin(); op != region.ops.rend(); ++op) {
      if (op->kind == OpKind::yield || !is_kept(*op)) continue;
      if (op->kind == OpKind::loop)
        mark_loop(*op);
      else
        for (ValueId v : op->operands) keep(v);
      for (const Region& inner : op->regions) mark(inner);
    }
  }

  void mark_loop(const Op& loop) {
    const Region& body = loop.regions.front();
    const auto anchors = static_cast<std::size_t>(loop.anchors()), vars = static_cast<std::size_t>(loop.loop_vars());
    if (anchors) keep(loop.operands.front());
    for (std::size_t i = 0; i < loop.results.size(); ++i) {
      if (!alive(loop.results[i]) && !alive(body.args[vars + i])) continue;
      keep(loop.results[i]);
      keep(body.args[vars + i]);
      keep(loop.operands[anchors + i]);
      keep(body.ops.back().operands[i]);
    }
  }

  void sweep(Region& region) {
    std::erase_if(region.ops, [&](const Op& op) { return !is_kept(op); });
    for (Op& op : region.ops) {
      if (op.kind == OpKind::loop) drop_carried(op);
      for (Region& inner : op.regions) sweep(inner);
    }
  }

  void drop_carried(Op& loop) {
    Region& body = loop.regions.front();
    const auto anchors = static_cast<std::ptrdiff_t>(loop.anchors()),
               vars = static_cast<std::ptrdiff_t>(loop.loop_vars());
    for (std::size_t i = loop.results.size(); i-- > 0;) {
      if (alive(loop.results[i])) continue;
      const auto at = static_cast<std::ptrdiff_t>(i);
      loop.results.erase(loop.results.begin() + at);
      loop.operands.erase(loop.operands.begin() + anchors + at);
      body.args.erase(body.args.begin() + vars + at);
      body.ops.back().operands.erase(body.ops.back().operands.begin() + at);
    }
  }

  std::vector<bool> alive_;
  bool changed_ = false;
};

}  // namespace

void drop_dead(ir::Program& p) { Sweep{p}; }

}  // namespace kerf::passes
