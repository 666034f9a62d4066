// A part of the loss as the subject of a search: a candidate is a plan with its blocks, a run is a call of that plan.
#pragma once

#include <exception>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "kerf/loss.h"
#include "runtime/loss_parts.h"
#include "runtime/tuner/loss_problem.h"
#include "runtime/tuner/place.h"
#include "runtime/tuner/search.h"

namespace kerf::runtime {

/// The description of the plans that are measured: what changes no time is fixed.
PlanDesc bench_desc(PlanDesc desc);
/// What the model needs to know of where they compute.
Machine machine_of(const PlanDesc& desc, int threads);

class LossRoute;

/// What the parts of one tuning share: the problem, where it lies, what it must come out as.
class LossBench {
 public:
  /// `memory`: bytes at most, 0: Place::default_limit. Throws DeviceError where that is too little.
  LossBench(const PlanDesc& desc, std::int64_t tokens, std::size_t memory, std::shared_ptr<CodeCache> cache);

  const PlanDesc& desc() const { return desc_; }
  const std::vector<std::int64_t>& order() const { return problem_.order; }
  std::int64_t tokens() const { return problem_.tokens; }
  const std::shared_ptr<ThreadPool>& pool() const { return pool_; }
  const std::shared_ptr<CodeCache>& cache() const { return cache_; }
  Place& place() { return place_; }
  /// Made meanwhile by threads of its own; waits for it.
  LossReference& reference();
  TuneSubject::Spent spent() const { return spent_; }
  /// Which calls are made: of both directions the backward goes by what the forward left.
  struct Calls {
    bool forward = false, backward = false, block_lse = false, stash = false;
  };
  ForwardArgs forward_args(const Plan& plan, const Calls& calls);
  BackwardArgs backward_args(const ForwardArgs& forward, const Calls& calls);
  /// Fills outputs, block_lse and workspace with NaN.
  void poison();
  /// Leaves the lse of the default's forward for backwards, and what dc then must be. Throws InternalError where that
  /// forward is wrong.
  void begin_backward();
  /// What is wrong with lse and loss, or with de and dc; empty: nothing.
  std::string wrong_forward();
  std::string wrong_backward(double tolerance);

 private:
  /// At least so many bytes of workspace; TuneFailure above the limit.
  TensorRef workspace(std::size_t bytes);
  void grow(Place::Memory& memory, std::size_t bytes, const char* what);
  /// Notes what the step takes.
  template <class Step>
  auto timed(const char* name, const Step& step);
  std::vector<double> rows_of(const Place::Memory& matrix, const std::vector<std::int64_t>& rows);

  PlanDesc desc_;
  std::shared_ptr<ThreadPool> pool_;
  std::shared_ptr<CodeCache> cache_;
  Place place_;
  LossProblem problem_;
  LossReference reference_;
  TuneSubject::Spent spent_;
  std::size_t limit_, used_ = 0;
  Place::Memory e_, c_, target_, grad_, loss_, lse_, de_, dc_, kept_lse_, block_lse_, stash_, workspace_;
  std::exception_ptr no_reference_;
  std::future<LossReference> coming_;  // last: it reads the problem
};

/// The programs of a loss with what a tuner's calls of a part launch compiled, and on a GPU loaded.
struct LoadedLoss {
  std::shared_ptr<LossRoute> route;
  std::optional<KernelResources> resources;  // of a GPU's kernels, the largest
};
/// Throws TuneFailure where the workspace passes desc.workspace_limit, though the default's does not.
LoadedLoss load_loss(const PlanDesc& desc, std::int64_t tokens, LossPart part, const LossPoints& points,
                     const std::shared_ptr<ThreadPool>& pool, const std::shared_ptr<CodeCache>& cache);

class LossSubject : public TuneSubject {
 public:
  /// `others`: the blocks of the parts that are not tuned.
  LossSubject(LossBench& bench, LossPart part, const LossPoints& others);

  std::optional<KernelResources> compile(const TunePoint& point) override;
  std::string check(const TunePoint& point) override;
  double run(const TunePoint& point) override;
  void forget(const TunePoint& point) override;

 private:
  Plan& plan(const TunePoint& point);

  LossBench& bench_;
  LossPart part_;
  LossBench::Calls calls_;
  LossPoints others_;
  std::mutex mutex_;
  /// What was compiled stays loaded for the plan: GPUs translate some code each time that it is loaded.
  struct Candidate {
    std::shared_ptr<const LossRoute> loaded;
    std::unique_ptr<Plan> plan;
  };
  std::map<TunePoint, Candidate> plans_;
};

}  // namespace kerf::runtime
