// Text to tile IR, the inverse of print. A hand-written lexer and one function per piece of the form; white space and
// `//` comments separate tokens and mean nothing else. The parser settles what names mean and that the form is whole;
// whether operands and types fit is verify's to say, which is called at the end.
#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <limits>
#include <set>
#include <unordered_map>

#include "kerf/error.h"
#include "lib/ir/ir.h"

namespace kerf::ir {

namespace {

constexpr int max_depth = 64;  // of regions, so that no text exhausts the stack

enum class Token : std::uint8_t { end, name, value, number, sign };

bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }

/// A token and where it begins.
struct Lexeme {
  Token kind = Token::end;
  std::string_view text;  // value: without the %
  int line = 1, column = 1;
};

class Lexer {
 public:
  explicit Lexer(std::string_view text) : text_(text) {}

  Lexeme next() {
    skip_space();
    Lexeme t{Token::end, {}, line_, static_cast<int>(at_ - line_begin_) + 1};
    if (at_ == text_.size()) return t;
    const std::size_t begin = at_;
    const char c = text_[at_];
    if (is_letter(c)) {
      while (at_ < text_.size() && (is_letter(text_[at_]) || is_digit(text_[at_]))) ++at_;
      t.kind = Token::name;
    } else if (c == '%') {
      ++at_;
      while (at_ < text_.size() && (is_letter(text_[at_]) || is_digit(text_[at_]))) ++at_;
      t.kind = Token::value;
    } else if (is_digit(c) || c == '-') {
      ++at_;
      while (at_ < text_.size() &&
             (is_letter(text_[at_]) || is_digit(text_[at_]) || text_[at_] == '.' || exponent_sign()))
        ++at_;
      t.kind = Token::number;
    } else {
      ++at_;
      t.kind = Token::sign;
    }
    t.text = text_.substr(begin, at_ - begin);
    return t;
  }

 private:
  bool exponent_sign() const {
    return (text_[at_] == '+' || text_[at_] == '-') && (text_[at_ - 1] == 'e' || text_[at_ - 1] == 'E');
  }
  void skip_space() {
    while (at_ < text_.size()) {
      const char c = text_[at_];
      if (c == '\n') {
        ++at_;
        ++line_;
        line_begin_ = at_;
      } else if (c == ' ' || c == '\t' || c == '\r') {
        ++at_;
      } else if (c == '/' && at_ + 1 < text_.size() && text_[at_ + 1] == '/') {
        while (at_ < text_.size() && text_[at_] != '\n') ++at_;
      } else {
        return;
      }
    }
  }

  std::string_view text_;
  std::size_t at_ = 0, line_begin_ = 0;
  int line_ = 1;
};

class Parser {
 public:
  Parser(std::string_view text, std::string_view name) : lexer_(text), file_(name) { advance(); }

  Program run() {
    word("program");
    p_.name = name("a name for the program");
    while (!is_sign('{')) declaration();
    advance();
    while (!is_sign('}')) p_.body.ops.push_back(operation(0));
    advance();
    if (t_.kind != Token::end) expected("the end of the text");
    verify(p_);
    return std::move(p_);
  }

 private:
  // Tokens.
  void advance() { t_ = lexer_.next(); }
  bool is_sign(char c) const { return t_.kind == Token::sign && t_.text[0] == c; }
  bool is_word(std::string_view w) const { return t_.kind == Token::name && t_.text == w; }

  [[noreturn]] void fail(const Lexeme& at, const std::string& what) const {
    throw UsageError(fmt::format("{}:{}:{}: {}", file_, at.line, at.column, what));
  }
  [[noreturn]] void expected(std::string_view what) const { expected(what, t_); }
  [[noreturn]] void expected(std::string_view what, const Lexeme& found) const {
    fail(found, fmt::format("expected {}, found {}", what, describe(found)));
  }
  static std::string describe(const Lexeme& t) {
    if (t.kind == Token::end) return "the end of the text";
    std::string s;
    for (char c : t.text.substr(0, 40)) {
      if (c >= ' ' && c <= '~')
        s += c;
      else
        s += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    }
    return fmt::format("'{}{}'", s, t.text.size() > 40 ? "..." : "");
  }

  void sign(char c) {
    if (!is_sign(c)) expected(fmt::format("'{}'", c));
    advance();
  }
  void word(std::string_view w) {
    if (!is_word(w)) expected(fmt::format("'{}'", w));
    advance();
  }
  bool skip_sign(char c) {
    if (!is_sign(c)) return false;
    advance();
    return true;
  }
  bool skip_word(std::string_view w) {
    if (!is_word(w)) return false;
    advance();
    return true;
  }
  std::string name(std::string_view what) {
    if (t_.kind != Token::name) expected(what);
    std::string s(t_.text);
    advance();
    return s;
  }
  std::int64_t integer(std::string_view what, std::int64_t least) {
    std::int64_t n = 0;
    if (t_.kind != Token::number || !whole_number(t_.text, n) || n < least) expected(what);
    advance();
    return n;
  }
  static bool whole_number(std::string_view s, std::int64_t& n) {
    const auto [end, error] = std::from_chars(s.data(), s.data() + s.size(), n);
    return error == std::errc() && end == s.data() + s.size();
  }
  std::int64_t extent() { return integer("a number of indices, at least 1", 1); }

  // Names of the program's tables.
  template <class T>
  static std::string list_names(const std::vector<T>& table) {
    std::string s;
    for (const T& entry : table) s += (s.empty() ? "" : ", ") + entry.name;
    return s.empty() ? "there is none" : "they are " + s;
  }
  template <class T>
  int find(const std::vector<T>& table, std::string_view article, std::string_view kind) {
    if (t_.kind == Token::name)
      for (std::size_t i = 0; i < table.size(); ++i)
        if (table[i].name == t_.text) {
          advance();
          return static_cast<int>(i);
        }
    expected(fmt::format("{} {} ({})", article, kind, list_names(table)));
  }
  int axis() { return find(p_.axes, "an", "axis"); }
  int tensor() { return find(p_.tensors, "a", "tensor"); }
  int list() { return find(p_.lists, "a", "tile list"); }
  template <class T>
  std::string new_name(const std::vector<T>& table, std::string_view kind) {
    const Lexeme at = t_;
    std::string s = name(fmt::format("a name for the {}", kind));
    for (const T& entry : table)
      if (entry.name == s) fail(at, fmt::format("expected a new name for the {}, found '{}' again", kind, s));
    return s;
  }

  // Declarations.
  void declaration() {
    static constexpr std::pair<std::string_view, Access> accesses[] = {
        {"input", Access::input}, {"output", Access::output}, {"inout", Access::inout}};
    for (const auto& [text, access] : accesses)
      if (skip_word(text)) return tensor_declaration(access);
    if (skip_word("axis")) {
      AxisInfo a;
      a.name = new_name(p_.axes, "axis");
      if (skip_sign('=')) a.size = integer("the size of the axis, at least 1", 1);
      p_.axes.push_back(std::move(a));
    } else if (skip_word("list")) {
      ListInfo l;
      l.name = new_name(p_.lists, "tile list");
      sign(':');
      sign('[');
      l.row_axis = axis();
      word("by");
      l.row_extent = extent();
      sign(',');
      l.column_axis = axis();
      word("by");
      l.column_extent = extent();
      sign(']');
      p_.lists.push_back(std::move(l));
    } else {
      expected("'axis', 'list', 'input', 'output', 'inout' or '{'");
    }
  }
  void tensor_declaration(Access access) {
    TensorInfo t;
    t.access = access;
    t.name = new_name(p_.tensors, "tensor");
    sign(':');
    t.dtype = dtype();
    if (!is_sign('[')) t.list = list();
    sign('[');
    while (!is_sign(']')) {
      if (!t.axes.empty()) sign(',');
      t.axes.push_back(axis());
    }
    advance();
    p_.tensors.push_back(std::move(t));
  }

  // Types.
  DType dtype() {
    static constexpr DType all[] = {f32, bf16, f16, i32, i64, boolean};
    for (DType d : all)
      if (skip_word(name_of(d))) return d;
    expected("a dtype (f32, bf16, f16, i32, i64, bool)");
  }
  Type type() {
    Type t;
    if (skip_word("tile") || is_word("staged")) {
      if (skip_word("staged")) t.kind = Type::Kind::staged;
      sign('<');
      do axis_extent(t);
      while (skip_word("x"));
      sign(',');
      t.dtype = dtype();
      sign('>');
      const std::vector<AxisExtent> sorted = tile_type(t.dtype, t.axes).axes;
      t.axes = sorted;
      return t;
    }
    if (skip_word("block")) {
      t.kind = Type::Kind::block;
      sign('<');
      axis_extent(t);
      sign('>');
      return t;
    }
    if (skip_word("entry")) {
      t.kind = Type::Kind::entry;
      sign('<');
      t.list = list();
      sign('>');
      return t;
    }
    for (DType d : {f32, bf16, f16, i32, i64, boolean})
      if (skip_word(name_of(d))) {
        t.dtype = d;
        return t;
      }
    expected("a type (a dtype, tile<...>, block<...>, entry<...>, staged<...>)");
  }
  void axis_extent(Type& t) {
    const Lexeme at = t_;
    const int a = axis();
    if (t.has(a)) expected("an axis that the type does not have yet", at);
    if (t.kind == Type::Kind::staged && t.staged_axis < 0 && skip_sign('/'))
      t.staged_axis = a;
    else
      sign(':');
    t.axes.push_back({a, extent()});
  }

  // Values. A name can be used from the end of the operation that defines it to the end of its region.
  ValueId define() {
    if (t_.kind != Token::value) expected("a value, as in %x");
    const std::string_view digits_or_name = t_.text.substr(1);
    const bool number = !digits_or_name.empty() && is_digit(digits_or_name[0]);
    bool good = !digits_or_name.empty();
    for (char c : digits_or_name) good = good && (!number || is_digit(c));
    if (!good) expected("a value, as in %x or %12");
    std::string key(digits_or_name);
    if (!defined_.insert(key).second) expected("a value that is not defined yet");
    advance();
    const ValueId v = p_.new_value(Type{}, number ? std::string() : key);
    keys_.push_back(std::move(key));
    return v;
  }
  void open(ValueId v) {
    visible_[keys_[static_cast<std::size_t>(v)]] = v;
    scope_.push_back(v);
  }
  void close(std::size_t scope) {
    for (; scope_.size() > scope; scope_.pop_back()) visible_.erase(keys_[static_cast<std::size_t>(scope_.back())]);
  }
  ValueId use() {
    if (t_.kind != Token::value) expected("a value, as in %x");
    const auto found = visible_.find(std::string(t_.text.substr(1)));
    if (found == visible_.end()) expected("a value that is defined before and can be seen here");
    advance();
    return found->second;
  }
  void uses(std::vector<ValueId>& values) {
    do values.push_back(use());
    while (skip_sign(','));
  }
  /// "[%a, %b]", maybe empty.
  void subscripts(std::vector<ValueId>& values) {
    sign('[');
    if (!is_sign(']')) uses(values);
    sign(']');
  }
  Type& type_of(ValueId v) { return p_.values[static_cast<std::size_t>(v)]; }

  // Operations.
  Op operation(int depth) {
    Op op;
    const Lexeme first = t_;
    if (t_.kind == Token::value) {
      do op.results.push_back(define());
      while (skip_sign(','));
      sign('=');
    }
    const std::optional<OpKind> kind = t_.kind == Token::name ? op_from_text(t_.text) : std::nullopt;
    if (!kind) expected(op.results.empty() ? "an operation or '}'" : "an operation");
    op.kind = *kind;
    op.place = {std::string(file_), t_.line};
    check_results(op, first);
    const std::size_t scope = scope_.size();
    advance();
    attributes(op, depth);
    close(scope);
    if (!op.results.empty()) types(op);
    if (op.kind == OpKind::constant) constant(op);
    for (ValueId v : op.results) open(v);
    return op;
  }

  void check_results(const Op& op, const Lexeme& first) const {
    const std::size_t n = op.results.size();
    const std::string_view text = info(op.kind).text;
    const auto need = [&](bool good, std::string_view what) {
      if (!good) fail(first, fmt::format("expected {} in front of '{}', found {}", what, text, n));
    };
    switch (op.kind) {
      case OpKind::loop: return;
      case OpKind::parallel: return need(n == 1 || n == 3, "1 or 3 results");
      case OpKind::when:
      case OpKind::yield:
      case OpKind::store:
      case OpKind::store_packed: return need(n == 0, "no results");
      default: return need(n == 1, "1 result");
    }
  }

  void types(Op& op) {
    sign(':');
    for (std::size_t i = 0; i < op.results.size(); ++i) {
      if (i > 0) sign(',');
      type_of(op.results[i]) = type();
    }
  }

  void attributes(Op& op, int depth) {
    switch (info(op.kind).rule) {
      case Rule::parallel:
        if (op.results.size() == 3) {
          op.list = list();
        } else {
          op.axis = axis();
          word("by");
          op.extent = extent();
        }
        return;
      case Rule::whole:
        op.axis = axis();
        op.extent = p_.axes[static_cast<std::size_t>(op.axis)].size;
        return;
      case Rule::axis_size: op.axis = axis(); return;
      case Rule::loop: return loop(op, depth);
      case Rule::when:
        op.operands.push_back(use());
        region(op, depth);
        return;
      case Rule::constant:
        if (t_.kind != Token::number && t_.kind != Token::name) expected("a number, true or false");
        constant_ = t_;
        advance();
        return;
      case Rule::load:
        op.tensor = tensor();
        subscripts(op.operands);
        if (skip_word("fill")) op.operands.push_back(use());
        return;
      case Rule::load_packed:
        op.tensor = tensor();
        subscripts(op.operands);
        return;
      case Rule::store:
      case Rule::store_packed:
        op.tensor = tensor();
        subscripts(op.operands);
        op.operands.insert(op.operands.begin(), use());
        return;
      case Rule::stage: return stage(op);
      case Rule::reduce:
      case Rule::scan:
        op.operands.push_back(use());
        word("over");
        op.axis = axis();
        return;
      default:
        if (t_.kind == Token::value) uses(op.operands);
        return;
    }
  }

  void stage(Op& op) {
    op.tensor = tensor();
    const std::vector<int>& axes = p_.tensors[static_cast<std::size_t>(op.tensor)].axes;
    sign('[');
    int star = -1;
    Lexeme at = t_;
    for (std::size_t i = 0; i < axes.size(); ++i) {
      if (i > 0) sign(',');
      if (star < 0 && is_sign('*')) {
        at = t_;
        star = axes[i];
        advance();
      } else {
        op.operands.push_back(use());
      }
    }
    sign(']');
    if (star < 0) expected("a '*' for the subscript of the staged axis", at);
    const Lexeme axis_at = t_;
    op.axis = axis();
    if (op.axis != star)
      expected(fmt::format("the axis under the '*', {}", p_.axes[static_cast<std::size_t>(star)].name), axis_at);
    word("by");
    op.extent = extent();
    if (skip_word("fill")) op.operands.push_back(use());
  }

  void constant(Op& op) {
    const DType dtype = type_of(op.results[0]).dtype;
    const std::string_view s = constant_.text;
    const char* const end = s.data() + s.size();
    if (dtype == boolean) {
      if (s != "true" && s != "false") expected("true or false for a bool", constant_);
      op.number = s == "true" ? 1 : 0;
    } else if (is_integer(dtype)) {
      const std::int64_t most =
          dtype == i32 ? std::numeric_limits<std::int32_t>::max() : std::numeric_limits<std::int64_t>::max();
      if (!whole_number(s, op.integer) || op.integer > most || op.integer < -most - 1)
        expected(fmt::format("an integer that fits {}", name_of(dtype)), constant_);
    } else if (s == "nan") {
      op.number = std::numeric_limits<double>::quiet_NaN();
    } else {
      const auto [stop, error] = std::from_chars(s.data(), end, op.number);
      const bool word = constant_.kind == Token::name && s != "inf";
      if (error != std::errc() || stop != end || word || std::isnan(op.number))
        expected("a number, inf, -inf or nan", constant_);
    }
  }

  void loop(Op& op, int depth) {
    const bool row = is_word("row"), column = is_word("column");
    Lexeme word_token = t_;
    bool over_list = false;
    if (row || column) {  // an axis may have that name too: then 'by' follows
      advance();
      over_list = !is_word("by");
    }
    if (over_list) {
      op.over = row ? LoopOver::row : LoopOver::column;
      op.operands.push_back(use());
      word("of");
      op.list = list();
    } else {
      if (row || column) {
        op.axis = p_.find_axis(word_token.text);
        if (op.axis < 0) expected("an axis", word_token);
      } else {
        op.axis = axis();
      }
      word("by");
      op.extent = extent();
      if (skip_word("part")) {
        op.over = LoopOver::part;
        op.operands.push_back(use());
        word("of");
        op.count = integer("a number of blocks, at least 1", 1);
      }
    }
    Region& region_ = op.regions.emplace_back();
    sign('[');
    for (int i = 0; i < op.loop_vars(); ++i) {
      if (i > 0) sign(',');
      const ValueId v = define();
      sign(':');
      type_of(v) = type();
      region_.args.push_back(v);
    }
    sign(']');
    if (skip_sign('(')) {
      do {
        const ValueId v = define();
        sign('=');
        const ValueId init = use();
        type_of(v) = type_of(init);
        op.operands.push_back(init);
        region_.args.push_back(v);
      } while (skip_sign(','));
      sign(')');
    }
    for (ValueId v : region_.args) open(v);
    body(op, region_, depth);
  }

  void region(Op& op, int depth) { body(op, op.regions.emplace_back(), depth); }

  void body(const Op& op, Region& r, int depth) {
    if (depth == max_depth) fail(t_, fmt::format("expected at most {} regions in each other, found more", max_depth));
    sign('{');
    while (!is_sign('}')) r.ops.push_back(operation(depth + 1));
    advance();
    if (op.kind == OpKind::when && (r.ops.empty() || r.ops.back().kind != OpKind::yield)) {
      Op end;
      end.kind = OpKind::yield;
      end.place = op.place;
      r.ops.push_back(std::move(end));
    }
  }

  Lexer lexer_;
  std::string_view file_;
  Lexeme t_;         // the token at hand
  Lexeme constant_;  // the number of the constant at hand; what it means depends on the type behind it
  Program p_;
  std::vector<std::string> keys_;  // by value: its name or digits
  std::set<std::string> defined_;
  std::unordered_map<std::string, ValueId> visible_;
  std::vector<ValueId> scope_;
};

}  // namespace

Program parse(std::string_view text, std::string_view name) { return Parser(text, name).run(); }

}  // namespace kerf::ir
