// The loss where labels, and so the number of rows that count, are known to a device alone: a fixed sequence of
// launches on a stream, which depends on nothing but sizes. It allocates nothing, waits for nothing and copies nothing
// to the host. The same sequence runs on a thread pool, which is how it is tested without a GPU.
//
//   forward   label_rows, compact_labels: rows with a label, and how many; losses of 0 or NaN for the others
//             compact_rows, lse_forward, combine: for all rows at once, or with min_memory a few at a time
//             sum_losses, finish_loss: mean or sum
//   backward  labels as above; upstream (and scale_upstream for f16): g; compact_rows, with min_memory into de
//             for each range of the vocabulary: list_tiles, grad_tiles, list_tiles, grad_c, grad_e
//             where blocks of dc are few: list_row_parts, grad_c_parts: sums of parts of the rows; sum_dc adds them up
//             where rows are few: list_parts, grad_e: sums of parts of the vocabulary; sum_parts adds them up
//             clear_rows: de of rows without a label
//   with a stash, for each range of the vocabulary: list_tiles and stash_tiles in place of lse_forward, dz_of_stash in
//             place of grad_tiles; what it has no room for by lse_tiles and grad_tiles
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "kerf/loss.h"
#include "runtime/device_programs.h"
#include "runtime/device_space.h"
#include "runtime/filter_space.h"
#include "runtime/loss_args.h"
#include "runtime/loss_parts.h"
#include "runtime/vocabulary_order.h"

namespace kerf::runtime {

/// The order of a plan's vocabulary, whatever blocks its calls take.
struct KnownOrder {
  VocabularyOrder order;
  bool provisional = false;
  std::mutex mutex;
};

class DeviceLoss {
 public:
  /// On desc.device, with blocks for its code.
  DeviceLoss(const PlanDesc& desc, std::shared_ptr<CodeCache> cache, const LossPoints& points,
             std::shared_ptr<KnownOrder> order);
  /// On the CPU, where `pool` stands in for the stream. `boxed` and `plain`: as if its code read in boxes.
  DeviceLoss(const PlanDesc& desc, const DeviceBlocks& boxed, const DeviceBlocks& plain,
             std::shared_ptr<ThreadPool> pool);

  /// On the CPU, for calls with block_lse or a stash alone.
  DeviceLoss(const PlanDesc& desc, const DeviceBlocks& blocks, std::shared_ptr<ThreadPool> pool,
             std::shared_ptr<CodeCache> cache, std::shared_ptr<KnownOrder> order);

  /// Those for tensors that lie as the device likes it best.
  DevicePrograms& programs() { return *programs_[0]; }
  std::size_t workspace(std::int64_t rows, bool backward) const;
  /// Of a stash that holds everything; with Strategy::automatic what workspace_limit has room for.
  std::size_t stash_bytes(std::int64_t rows) const;
  /// With Strategy::automatic a stash leaves at least so much of workspace_limit for a backward without it.
  void leave_room(std::function<std::size_t(std::int64_t rows)> room) { room_ = std::move(room); }
  Ranges ranges(std::int64_t rows) const { return ranges(*programs_[0], rows); }
  void forward(const ForwardArgs& args, Stream stream);
  void backward(const BackwardArgs& args, Stream stream);

  /// Of a plan that filters.
  bool filters() const { return filtered_ != nullptr; }
  /// Whether calls of so many rows with block_lse do.
  bool filters(std::int64_t rows) const {
    return filtered_ && kerf::runtime::filters(desc_, filtered_->blocks().boxed, rows);
  }
  DevicePrograms& filtered_programs() { return *filtered_; }
  FilterRanges filter_ranges(std::int64_t rows) const;
  std::array<std::int64_t, 2> block_lse_shape(std::int64_t rows) const;
  /// What the forward leaves for the backward counts to workspace_limit; 0 where calls of so many rows do not filter.
  std::size_t block_lse_bytes(std::int64_t rows) const;
  FilterReport filter_report(const TensorRef& workspace, Stream stream) const;
  void set_order(const std::vector<std::int64_t>& order, const char* call);
  /// Sorts the vocabulary by c times the sum of the rows of e; waits for the stream.
  void find_order(const TensorRef& e, const TensorRef& c, const char* call, Stream stream);

 private:
  struct Call;
  struct FilteredCall;
  /// The programs for a c that lies like this, and for the copy of e that `de` may hold.
  DevicePrograms& programs_for(const TensorRef& c, const TensorRef& de) const;
  std::int64_t chunk(const DevicePrograms& p, std::int64_t rows) const;
  DeviceProgram forward_program(const DevicePrograms& p, std::int64_t rows) const;
  std::int64_t parts(const DevicePrograms& p, std::int64_t rows) const;
  Ranges ranges(const DevicePrograms& p, std::int64_t rows) const;
  std::size_t workspace(const DevicePrograms& p, std::int64_t rows, bool backward) const;
  /// Whether calls of so many rows may be given a stash.
  bool stashes_with(std::int64_t rows) const;
  /// What is worth keeping in the bytes of workspace_limit that a backward leaves over.
  StashSpace stash_beside(const DevicePrograms& p, std::int64_t rows, std::size_t backward) const;
  /// What the stash of a call has room for; `needed`: whether dense cannot do without.
  StashSpace stash_space(const TensorRef& stash, const DevicePrograms& p, std::int64_t rows, const std::string& call,
                         bool needed) const;
  /// Whether calls of so many rows with this c are filtered: not where boxes cannot read it and it is not copied.
  bool filters_with(const TensorRef& c, std::int64_t rows) const;
  BlockLseShape shape_of_block_lse() const;
  /// Waits for the stream.
  void read_back(void* to, const void* from, std::size_t bytes, Stream stream) const;
  /// With the order's mutex held.
  void sort_vocabulary(const TensorRef& e, const TensorRef& c, const char* call, Stream stream);
  void filtered_backward(const BackwardCall& args, bool accumulate_dc, Stream stream);
  /// Throws UsageError where the caller was to give an order and has not.
  void require_given_order(const std::string& name) const;
  /// The order of the vocabulary, found from the rows with a label in `compact` if there is none yet.
  TensorRef known_order(const TensorRef& compact, const LabelSpace& labels, const TensorRef& c, const std::string& name,
                        Stream stream);
  /// PlanDesc::check_labels: waits for the stream, then looks at a copy.
  void check_on_host(const Labels& labels, const std::string& call, Stream stream) const;

  PlanDesc desc_;
  std::shared_ptr<ThreadPool> pool_;
  std::function<std::size_t(std::int64_t rows)> room_ = [](std::int64_t) { return std::size_t{0}; };
  std::vector<std::unique_ptr<DevicePrograms>> programs_;  // boxed, plain; or plain alone
  std::unique_ptr<DevicePrograms> filtered_;               // null where the plan does not filter
  std::shared_ptr<KnownOrder> order_ = std::make_shared<KnownOrder>();
};

}  // namespace kerf::runtime
