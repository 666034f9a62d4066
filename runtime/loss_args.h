// Arguments of a loss call, checked before anything is written and brought to one form: rows in one axis.
#pragma once

#include <array>
#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "kerf/loss.h"
#include "runtime/labels.h"

namespace kerf::runtime {

/// Rows and columns of block_lse for a number of rows; empty where the plan does not filter.
using BlockLseShape = std::function<std::array<std::int64_t, 2>(std::int64_t rows)>;

/// Collects the tensors of one call and throws UsageError, beginning with the call's name, at the first that is wrong.
class ArgumentCheck {
 public:
  ArgumentCheck(std::string call, const PlanDesc& desc) : call_(std::move(call)), desc_(desc) {}

  /// e and c; tells the shape that rows come in. Returns e as [N, D].
  TensorRef embeddings(const TensorRef& e, const TensorRef& c);
  Labels labels(const TensorRef& target, const TensorRef& cu_seqlens);
  /// One f32 per row, dense; returned as [N].
  TensorRef per_row(const char* name, const TensorRef& t, bool output);
  /// One f32 in all.
  TensorRef single(const char* name, const TensorRef& t, bool output);
  /// One f32 per row, read on the host: any strides.
  void upstream(const TensorRef& t);
  /// de, like e; returned as [N, D].
  TensorRef grad_e(const TensorRef& t);
  TensorRef grad_c(const TensorRef& t);
  /// Given where the plan filters, of the shape told.
  TensorRef block_lse(const TensorRef& t, const BlockLseShape& shape, bool output);
  /// Any number of bytes, of a plan that stashes.
  void stash(const TensorRef& t);
  /// At least `needed` bytes.
  std::byte* workspace(const TensorRef& t, std::size_t needed);
  /// Call last: outputs share no memory with another tensor.
  void no_overlap() const;

  std::int64_t rows() const { return rows_; }
  const std::string& call() const { return call_; }

 private:
  /// Where a tensor's rows lie in memory.
  struct Span {
    std::string name;
    std::uintptr_t begin, end;  // bytes; empty where the tensor has no elements
    std::int64_t width, step;   // bytes of a row, and from one to the next; equal where there is one row or none
    bool output;
  };

  [[noreturn]] void fail(const std::string& what) const;
  /// Device, sizes, strides, pointer, alignment; remembers its span.
  void memory(const char* name, const TensorRef& t, bool output);
  void require_given(const char* name, const TensorRef& t) const;
  void require_dtype(const char* name, const TensorRef& t, bool ok, const char* wanted) const;
  void require_rows(const char* name, const TensorRef& t) const;  // shape is that of e without D
  TensorRef flat_rows(const char* name, const TensorRef& t) const;
  TensorRef dense_rows(const char* name, const TensorRef& t, std::int64_t rows) const;
  std::string row_shape() const;

  std::string call_;
  const PlanDesc& desc_;
  TensorRef e_;
  std::int64_t rows_ = 0;
  std::vector<Span> spans_;
};

/// The arguments of a call, checked.
struct ForwardCall {
  TensorRef e = {}, c = {};  // e as [N, D]
  Labels labels = {};
  TensorRef loss = {}, lse = {};  // lse, and loss for none, as [N]; not given where not wanted
  TensorRef block_lse = {}, stash = {};
  std::byte* memory = nullptr;
  std::string name = {};
};
struct BackwardCall {
  TensorRef e = {}, c = {};
  Labels labels = {};
  TensorRef lse = {}, grad_loss = {};
  TensorRef de = {}, dc = {};
  TensorRef block_lse = {}, stash = {};
  std::byte* memory = nullptr;
  std::size_t bytes = 0;  // of workspace
  std::string name = {};
};
/// `needed` tells the bytes of workspace for a number of rows. Labels are not looked at.
using WorkspaceBytes = std::function<std::size_t(std::int64_t rows)>;
ForwardCall check_forward(const PlanDesc& desc, const ForwardArgs& args, const WorkspaceBytes& needed,
                          const BlockLseShape& block_lse = {});
BackwardCall check_backward(const PlanDesc& desc, const BackwardArgs& args, const WorkspaceBytes& needed,
                            const BlockLseShape& block_lse = {});

/// Throws UsageError where cu_seqlens, in host memory, does not rise from 0 to the number of rows.
void check_sequences(const TensorRef& cu_seqlens, std::int64_t rows, const std::string& call);

}  // namespace kerf::runtime
