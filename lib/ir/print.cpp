// Tile IR as text. The form is regular: one operation a line, results, operation, operands, type; regions in braces.
//
//   program scale
//   axis N
//   input x : f32 [N]
//   output y : f32 [N]
//   {
//     %n = parallel N by 128 : block<N:128>
//     %x = load x [%n] : tile<N:128, f32>
//     %2 = const 0.5 : f32
//     %3 = mul %x, %2 : tile<N:128, f32>
//     store y [%n] %3
//   }
//
// A value without a name is printed as its position in the text, counted from 0 over all values; parse numbers values
// the same way, so a second round changes nothing. The empty yield that ends a `when` is left out.
#include <fmt/format.h>

#include <cmath>
#include <iterator>
#include <set>

#include "lib/ir/ir.h"

namespace kerf::ir {

namespace {

bool is_identifier(std::string_view s) {
  const auto letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; };
  if (s.empty() || !letter(s[0])) return false;
  for (char c : s)
    if (!letter(c) && !(c >= '0' && c <= '9')) return false;
  return true;
}

class Printer {
 public:
  Printer(const Program& p, bool places) : p_(p), places_(places), names_(p.values.size()) { name_values(p.body); }

  std::string run() {
    add("program {}\n", p_.name);
    for (const AxisInfo& a : p_.axes) {
      if (a.size == unknown)
        add("axis {}\n", a.name);
      else
        add("axis {} = {}\n", a.name, a.size);
    }
    for (const ListInfo& l : p_.lists)
      add("list {} : [{} by {}, {} by {}]\n", l.name, axis(l.row_axis), l.row_extent, axis(l.column_axis),
          l.column_extent);
    for (const TensorInfo& t : p_.tensors) {
      static constexpr std::string_view words[] = {"input", "output", "inout"};
      add("{} {} : {} ", words[static_cast<std::size_t>(t.access)], t.name, name_of(t.dtype));
      if (t.list >= 0) add("{} ", list(t.list));
      add("[");
      for (std::size_t i = 0; i < t.axes.size(); ++i) add("{}{}", i ? ", " : "", axis(t.axes[i]));
      add("]\n");
    }
    add("{{\n");
    for (const Op& op : p_.body.ops) print(op, 1);
    add("}}\n");
    return std::move(out_);
  }

 private:
  template <class... A>
  void add(fmt::format_string<A...> format, A&&... args) {
    fmt::format_to(std::back_inserter(out_), format, std::forward<A>(args)...);
  }

  // Order of appearance: results, then a region's arguments, then what is in it.
  void name_values(const Region& region) {
    for (ValueId v : region.args) name_value(v);
    for (const Op& op : region.ops) {
      for (ValueId v : op.results) name_value(v);
      for (const Region& r : op.regions) name_values(r);
    }
  }
  void name_value(ValueId v) {
    if (v < 0 || static_cast<std::size_t>(v) >= names_.size()) return;
    const auto i = static_cast<std::size_t>(v);
    const int number = seen_++;
    if (i >= p_.value_names.size() || !is_identifier(p_.value_names[i])) {
      names_[i] = fmt::format("%{}", number);
      return;
    }
    std::string name = p_.value_names[i];
    for (int copy = 1; !used_.insert(name).second; ++copy) name = fmt::format("{}_{}", p_.value_names[i], copy);
    names_[i] = '%' + name;
  }

  // Numbers outside the tables print as "?": text of a broken program is for reading an error, not for parsing.
  std::string_view axis(int a) const { return at(p_.axes, a); }
  std::string_view tensor(int t) const { return at(p_.tensors, t); }
  std::string_view list(int l) const { return at(p_.lists, l); }
  template <class T>
  static std::string_view at(const std::vector<T>& table, int i) {
    return i >= 0 && static_cast<std::size_t>(i) < table.size()
               ? std::string_view(table[static_cast<std::size_t>(i)].name)
               : "?";
  }
  std::string_view name(ValueId v) const {
    const bool known = v >= 0 && static_cast<std::size_t>(v) < names_.size();
    return known && !names_[static_cast<std::size_t>(v)].empty() ? std::string_view(names_[static_cast<std::size_t>(v)])
                                                                 : "%?";
  }
  std::string type(ValueId v) const {
    if (v < 0 || static_cast<std::size_t>(v) >= p_.values.size()) return "?";
    const Type& t = p_.type(v);
    return t.is_scalar() ? std::string(name_of(t.dtype)) : to_text(p_, t);
  }
  std::string names(const std::vector<ValueId>& values, std::size_t begin, std::size_t end) const {
    std::string s;
    for (std::size_t i = begin; i < std::min(end, values.size()); ++i)
      fmt::format_to(std::back_inserter(s), "{}{}", i > begin ? ", " : "", name(values[i]));
    return s;
  }
  std::string names(const std::vector<ValueId>& values) const { return names(values, 0, values.size()); }

  std::string constant(const Op& op) const {
    const DType dtype = op.results.empty() ? f32 : p_.type(op.results[0]).dtype;
    if (dtype == boolean) return op.number != 0 ? "true" : "false";
    if (is_integer(dtype)) return fmt::format("{}", op.integer);
    return std::isnan(op.number) ? "nan" : fmt::format("{}", op.number);
  }

  void print(const Op& op, int depth) {
    out_.append(static_cast<std::size_t>(2 * depth), ' ');
    if (!op.results.empty()) add("{} = ", names(op.results));
    add("{}", info(op.kind).text);
    print_operands(op);
    if (op.regions.empty()) {
      print_types(op);
      print_end(op);
      return;
    }
    add(" {{");
    print_end(op);
    for (const Region& region : op.regions)
      for (const Op& inner : region.ops) {
        const bool implied = op.kind == OpKind::when && inner.kind == OpKind::yield && inner.operands.empty() &&
                             &inner == &region.ops.back();
        if (!implied) print(inner, depth + 1);
      }
    out_.append(static_cast<std::size_t>(2 * depth), ' ');
    add("}}");
    print_types(op);
    add("\n");
  }

  void print_types(const Op& op) {
    for (std::size_t i = 0; i < op.results.size(); ++i) add("{}{}", i ? ", " : " : ", type(op.results[i]));
  }

  void print_end(const Op& op) {
    if (places_ && !op.place.file.empty()) add("  // {}:{}", op.place.file, op.place.line);
    add("\n");
  }

  void print_operands(const Op& op) {
    const std::vector<ValueId>& operands = op.operands;
    const std::size_t rank = op.tensor >= 0 && static_cast<std::size_t>(op.tensor) < p_.tensors.size()
                                 ? p_.tensors[static_cast<std::size_t>(op.tensor)].axes.size()
                                 : 0;
    switch (info(op.kind).rule) {
      case Rule::parallel:
        if (op.list >= 0)
          add(" {}", list(op.list));
        else
          add(" {} by {}", axis(op.axis), op.extent);
        return;
      case Rule::whole:
      case Rule::axis_size: add(" {}", axis(op.axis)); return;
      case Rule::loop: print_loop(op); return;
      case Rule::constant: add(" {}", constant(op)); return;
      case Rule::load:
        add(" {} [{}]", tensor(op.tensor), names(operands, 0, rank));
        if (operands.size() > rank) add(" fill {}", names(operands, rank, operands.size()));
        return;
      case Rule::store:
        add(" {} [{}] {}", tensor(op.tensor), names(operands, 1, operands.size()), names(operands, 0, 1));
        return;
      case Rule::load_packed: add(" {} [{}]", tensor(op.tensor), names(operands)); return;
      case Rule::store_packed:
        add(" {} [{}] {}", tensor(op.tensor), names(operands, 1, operands.size()), names(operands, 0, 1));
        return;
      case Rule::stage: print_stage(op, rank); return;
      case Rule::reduce:
      case Rule::scan: add(" {} over {}", names(operands), axis(op.axis)); return;
      default:
        if (!operands.empty()) add(" {}", names(operands));
        return;
    }
  }

  // The staged axis has a star for its subscript.
  void print_stage(const Op& op, std::size_t rank) {
    add(" {} [", tensor(op.tensor));
    std::size_t next = 0;
    for (std::size_t i = 0; i < rank; ++i) {
      const bool star = p_.tensors[static_cast<std::size_t>(op.tensor)].axes[i] == op.axis;
      add("{}{}", i ? ", " : "", star || next >= op.operands.size() ? "*" : name(op.operands[next]));
      if (!star) ++next;
    }
    add("] {} by {}", axis(op.axis), op.extent);
    if (next < op.operands.size()) add(" fill {}", names(op.operands, next, op.operands.size()));
  }

  void print_loop(const Op& op) {
    const auto anchor = [&] { return op.operands.empty() ? "%?" : name(op.operands[0]); };
    switch (op.over) {
      case LoopOver::axis: add(" {} by {}", axis(op.axis), op.extent); break;
      case LoopOver::part: add(" {} by {} part {} of {}", axis(op.axis), op.extent, anchor(), op.count); break;
      case LoopOver::row: add(" row {} of {}", anchor(), list(op.list)); break;
      case LoopOver::column: add(" column {} of {}", anchor(), list(op.list)); break;
    }
    if (op.regions.empty()) return;
    const std::vector<ValueId>& args = op.regions[0].args;
    const auto vars = static_cast<std::size_t>(op.loop_vars());
    add(" [");
    for (std::size_t i = 0; i < std::min(vars, args.size()); ++i)
      add("{}{} : {}", i ? ", " : "", name(args[i]), type(args[i]));
    add("]");
    if (args.size() <= vars) return;
    add(" (");
    for (std::size_t i = vars; i < args.size(); ++i) {
      const std::size_t init = i - vars + static_cast<std::size_t>(op.anchors());
      add("{}{} = {}", i > vars ? ", " : "", name(args[i]), init < op.operands.size() ? name(op.operands[init]) : "%?");
    }
    add(")");
  }

  const Program& p_;
  const bool places_;
  std::string out_;
  std::vector<std::string> names_;  // with the %, by value
  std::set<std::string> used_;
  int seen_ = 0;
};

}  // namespace

std::string print(const Program& p, bool places) { return Printer(p, places).run(); }

}  // namespace kerf::ir
