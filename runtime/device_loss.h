// The loss where labels, and so the number of rows that count, are known to a device alone: a fixed sequence of
// launches on a stream, which depends on nothing but sizes. It allocates nothing, waits for nothing and copies nothing
// to the host. The same sequence runs on a thread pool, which is how it is tested without a GPU.
//
//   forward   label_rows, label_offsets, compact_labels: rows with a label, and how many
//             begin_losses: 0 or NaN for the others
//             compact_rows, lse_forward, combine: for all rows at once, or with min_memory a few at a time
//             sum_losses, finish_loss: mean or sum
//   backward  labels as above; upstream (and scale_upstream for f16): g; compact_rows, with min_memory into de
//             for each range of the vocabulary: list_tiles, grad_tiles, list_tiles, grad_c, grad_e
//             clear_rows: de of rows without a label
#pragma once

#include <cstddef>
#include <memory>

#include "kerf/loss.h"
#include "runtime/device_programs.h"
#include "runtime/device_space.h"
#include "runtime/loss_args.h"

namespace kerf::runtime {

class DeviceLoss {
 public:
  /// On desc.device; `pool` stands in for the stream where that is the CPU.
  DeviceLoss(const PlanDesc& desc, const DeviceBlocks& blocks, std::shared_ptr<ThreadPool> pool = nullptr);

  DevicePrograms& programs() { return programs_; }
  std::size_t workspace(std::int64_t rows, bool backward) const;
  Ranges ranges(std::int64_t rows) const;
  void forward(const ForwardArgs& args, Stream stream);
  void backward(const BackwardArgs& args, Stream stream);

 private:
  struct Call;
  std::int64_t chunk(std::int64_t rows) const;
  bool runs_of_blocks(std::int64_t rows) const;
  std::int64_t parts(std::int64_t rows) const;
  std::size_t limit() const;
  /// PlanDesc::check_labels: waits for the stream, then looks at a copy.
  void check_on_host(const Labels& labels, const std::string& call, Stream stream) const;

  PlanDesc desc_;
  std::shared_ptr<ThreadPool> pool_;
  DevicePrograms programs_;
};

}  // namespace kerf::runtime
