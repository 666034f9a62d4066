// Instances of a program run in any order and at the same time, so two of them must not write one element: its value
// would be anybody's. What is checked is necessary, and catches the slips: for every `parallel` the subscripts of each
// store, or a condition around it, must depend on its block. (A scatter's indices must differ, which only the caller
// knows.)
//
//   %n = parallel N by 8 ...  store y [%d] %x      every instance along N writes the same elements of y
#include <fmt/format.h>

#include <cstdint>

#include "kerf/error.h"
#include "lib/ir/ir.h"

namespace kerf::ir {

namespace {

using Mask = std::uint64_t;  // a bit per grid dimension; a list of kept tiles has one for its rows, one for its columns

class Writes {
 public:
  explicit Writes(const Program& p) : p_(p), depends_(p.values.size()) {}

  void run() { region(p_.body, 0); }

 private:
  Mask& of(ValueId v) { return depends_[static_cast<std::size_t>(v)]; }
  Mask of_all(const std::vector<ValueId>& values, std::size_t first = 0) {
    Mask m = 0;
    for (std::size_t i = first; i < values.size(); ++i) m |= of(values[i]);
    return m;
  }

  /// A dimension of the grid that has more than one instance.
  Mask dimension(int axis, std::int64_t extent) {
    const std::int64_t size = p_.axes[static_cast<std::size_t>(axis)].size;
    if (size != unknown && size <= extent) return 0;
    axes_.push_back(axis);
    return axes_.size() <= 64 ? Mask{1} << (axes_.size() - 1) : 0;
  }

  void parallel(const Op& op) {
    if (op.list < 0) {
      of(op.results[0]) = dimension(op.axis, op.extent);
      return;
    }
    const ListInfo& l = p_.lists[static_cast<std::size_t>(op.list)];
    of(op.results[1]) = dimension(l.row_axis, l.row_extent);
    of(op.results[2]) = dimension(l.column_axis, l.column_extent);
    of(op.results[0]) = of(op.results[1]) | of(op.results[2]);
  }

  /// `around`: what the conditions around the region depend on.
  void region(const Region& r, Mask around) {
    for (const Op& op : r.ops) {
      if (op.kind == OpKind::parallel) {
        parallel(op);
      } else if (op.kind == OpKind::loop) {
        loop(op, around);
      } else if (op.kind == OpKind::when) {
        region(op.regions[0], around | of(op.operands[0]));
      } else if (info(op.kind).effect == Effect::write) {
        store(op, around | of_all(op.operands, 1));
      } else {
        for (ValueId v : op.results) of(v) = of_all(op.operands);
      }
    }
  }

  void loop(const Op& op, Mask around) {
    const std::size_t anchors = static_cast<std::size_t>(op.anchors());
    const std::size_t vars = static_cast<std::size_t>(op.loop_vars());
    const Region& r = op.regions[0];
    const Mask walked = anchors ? of(op.operands[0]) : 0;
    for (std::size_t i = 0; i < vars; ++i) of(r.args[i]) = walked;
    // What a carried tile depends on follows from the body, so no more than is certain is assumed of it.
    for (std::size_t i = vars; i < r.args.size(); ++i) of(r.args[i]) = of(op.operands[anchors + i - vars]) | walked;
    region(r, around);
    for (std::size_t i = 0; i < op.results.size(); ++i)
      of(op.results[i]) = of(r.args[vars + i]) | of(r.ops.back().operands[i]);
  }

  void store(const Op& op, Mask depends) const {
    for (std::size_t i = 0; i < axes_.size() && i < 64; ++i) {
      if (depends >> i & 1) continue;
      const std::string& axis = p_.axes[static_cast<std::size_t>(axes_[i])].name;
      throw UsageError(
          fmt::format("{}:{}: {}: every instance along {} writes the same elements of {}; a subscript must depend on "
                      "its block of {}, "
                      "or a when around the store",
                      op.place.file, op.place.line, info(op.kind).text, axis,
                      p_.tensors[static_cast<std::size_t>(op.tensor)].name, axis));
    }
  }

  const Program& p_;
  std::vector<Mask> depends_;
  std::vector<int> axes_;  // of the grid's dimensions
};

}  // namespace

void verify_writes(const Program& p) { Writes(p).run(); }

}  // namespace kerf::ir
