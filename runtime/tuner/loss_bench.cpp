#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "kerf/error.h"
#include "runtime/processors.h"
#include "runtime/tuner/loss_subject.h"
#include "runtime/tuner/values.h"

namespace kerf::runtime {

namespace {

constexpr unsigned char all_ones = 0xff;  // a NaN in every float type

/// Absolute, of lse and loss: far above what rounding and tensor cores lose, far below what a missing block does.
double lse_tolerance(double lse) { return 2e-3 + 2e-4 * std::abs(lse); }

}  // namespace

PlanDesc bench_desc(PlanDesc d) {
  d.reduction = Reduction::none;  // every row's loss can be looked at
  d.ignore_index = -1;
  d.shift = 0;
  d.check_labels = false;
  d.tuning = Tuning::off;
  if (d.order == Order::automatic) d.order = Order::given;  // no call finds one
  return d;
}

Machine machine_of(const PlanDesc& desc, int threads) {
  if (desc.device.type == DeviceType::cpu) return {.units = threads};
  const cuda::DeviceInfo info = cuda::device_info(*cuda::Driver::open(), desc.device.ordinal);
  return {.units = info.multiprocessors, .l2_bytes = info.l2_bytes};
}

template <class Step>
auto LossBench::timed(const char* name, const Step& step) {
  struct Note {
    TuneSubject::Spent& spent;
    const char* name;
    std::chrono::steady_clock::time_point start = std::chrono::steady_clock::now();
    ~Note() {
      spent.emplace_back(name, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
  };
  const Note note{spent_, name};
  return step();
}

LossBench::LossBench(const PlanDesc& desc, std::int64_t tokens, std::size_t memory, std::shared_ptr<CodeCache> cache)
    : desc_(bench_desc(desc)),
      pool_(std::make_shared<ThreadPool>(desc.threads)),
      cache_(cache ? std::move(cache) : std::make_shared<CodeCache>()),
      place_(desc.device),
      limit_(memory > 0 ? memory : place_.default_limit()) {
  const Plan checked(desc_, {.pool = pool_, .cache = cache_});  // refuses a description that makes no sense
  problem_.tokens = tokens;
  const auto matrix = [&](std::int64_t rows) {
    return static_cast<double>(rows) * static_cast<double>(desc.hidden) * static_cast<double>(size_of(desc.dtype));
  };
  const double needed = 2 * (matrix(tokens) + matrix(desc.vocabulary));
  if (needed > static_cast<double>(limit_))
    throw DeviceError(
        fmt::format("tune: e, c, de and dc of N={} D={} V={} {} take {:.0f} MiB, and tuning may take {} MiB; tune with "
                    "fewer tokens "
                    "or give it more memory",
                    tokens, desc.hidden, desc.vocabulary, name_of(desc.dtype), needed / (1 << 20), limit_ >> 20));
  problem_ = timed("problem", [&] { return make_problem(tokens, desc.hidden, desc.vocabulary, desc.dtype, *pool_); });
  coming_ = std::async(std::launch::async, [this] {
    ThreadPool pool(desc_.threads);
    return reference_rows(problem_, pool);
  });
  grow(e_, problem_.bytes_of_e(), "e");
  grow(c_, problem_.bytes_of_c(), "c");
  grow(de_, problem_.bytes_of_e(), "de");
  grow(dc_, problem_.bytes_of_c(), "dc");
  const auto rows = static_cast<std::size_t>(tokens);
  for (Place::Memory* m : {&grad_, &loss_, &lse_, &kept_lse_}) grow(*m, rows * sizeof(float), "vectors of rows");
  grow(target_, rows * sizeof(std::int64_t), "target");
  timed("upload", [&] {
    place_.upload(e_, problem_.e.get());
    place_.upload(c_, problem_.c.get());
    place_.upload(target_, problem_.target.data());
    place_.upload(grad_, std::vector<float>(rows, 1).data());
  });
}

LossReference& LossBench::reference() {
  if (coming_.valid()) {
    try {
      timed("reference", [&] { reference_ = coming_.get(); });
    } catch (...) {
      no_reference_ = std::current_exception();
    }
  }
  if (no_reference_) std::rethrow_exception(no_reference_);  // nothing passes unchecked
  return reference_;
}

void LossBench::grow(Place::Memory& memory, std::size_t bytes, const char* what) {
  if (memory.bytes() >= bytes) return;
  const std::size_t after = used_ - memory.bytes() + bytes;
  if (after > limit_)
    throw TuneFailure(WisdomStatus::resources,
                      fmt::format("{} of {} MiB brings what tuning takes to {} MiB, allowed are {} MiB", what,
                                  bytes >> 20, after >> 20, limit_ >> 20));
  used_ -= memory.bytes();
  memory = {};
  memory = place_.allocate(bytes);
  used_ += memory.bytes();
}

TensorRef LossBench::workspace(std::size_t bytes) {
  grow(workspace_, bytes, "a workspace");
  return place_.tensor(workspace_, boolean, {static_cast<std::int64_t>(workspace_.bytes())});
}

ForwardArgs LossBench::forward_args(const Plan& plan, const Calls& calls) {
  const std::int64_t N = tokens(), D = desc_.hidden, V = desc_.vocabulary;
  ForwardArgs a{.e = place_.tensor(e_, desc_.dtype, {N, D}),
                .c = place_.tensor(c_, desc_.dtype, {V, D}),
                .target = place_.tensor(target_, i64, {N}),
                .loss = place_.tensor(loss_, f32, {N}),
                .lse = place_.tensor(lse_, f32, {N})};
  if (calls.block_lse) {
    const auto [blocks, rows] = plan.block_lse_shape(N);
    grow(block_lse_, static_cast<std::size_t>(blocks * rows) * sizeof(float), "block_lse");
    a.block_lse = place_.tensor(block_lse_, f32, {blocks, rows});
  }
  if (calls.stash && plan.stash_bytes(N) > 0) {
    grow(stash_, plan.stash_bytes(N), "a stash");
    a.stash = place_.tensor(stash_, boolean, {static_cast<std::int64_t>(stash_.bytes())});
  }
  a.workspace = workspace(std::max(plan.workspace_bytes(N, false), plan.workspace_bytes(N, calls.backward)));
  return a;
}

BackwardArgs LossBench::backward_args(const ForwardArgs& f, const Calls& calls) {
  const std::int64_t N = tokens(), D = desc_.hidden, V = desc_.vocabulary;
  return {.e = f.e,
          .c = f.c,
          .target = f.target,
          .lse = place_.tensor(calls.forward ? lse_ : kept_lse_, f32, {N}),
          .grad_loss = place_.tensor(grad_, f32, {N}),
          .de = place_.tensor(de_, desc_.dtype, {N, D}),
          .dc = place_.tensor(dc_, desc_.dtype, {V, D}),
          .block_lse = f.block_lse,
          .stash = f.stash,
          .workspace = f.workspace};
}

void LossBench::poison() {
  for (const Place::Memory* m : {&loss_, &lse_, &de_, &dc_, &block_lse_, &workspace_})
    if (m->bytes() > 0) place_.fill(*m, all_ones);
}

std::string LossBench::wrong_forward() {
  std::vector<float> lse(static_cast<std::size_t>(tokens())), loss(lse.size());
  place_.download(lse.data(), lse_, 0, lse.size() * sizeof(float));
  place_.download(loss.data(), loss_, 0, loss.size() * sizeof(float));
  place_.wait();
  for (std::size_t i = 0; i < reference().rows.size(); ++i) {
    const auto n = static_cast<std::size_t>(reference().rows[i]);
    const double allowed = lse_tolerance(reference().lse[i]);
    for (const auto& [name, ours, right] :
         {std::tuple("lse", lse[n], reference().lse[i]), std::tuple("loss", loss[n], reference().loss[i])})
      if (!(std::abs(ours - right) <= allowed))
        return fmt::format("{}: row {} is {}, right is {:.6g}", name, n, ours, right);
  }
  for (std::size_t n = 0; n < lse.size(); ++n)
    if (!std::isfinite(lse[n]) || !std::isfinite(loss[n]))
      return fmt::format("lse: row {} is {}, its loss {}", n, lse[n], loss[n]);
  return {};
}

std::vector<double> LossBench::rows_of(const Place::Memory& matrix, const std::vector<std::int64_t>& rows) {
  const auto row = static_cast<std::size_t>(desc_.hidden * size_of(desc_.dtype));
  std::vector<std::byte> bytes(rows.size() * row);
  for (std::size_t i = 0; i < rows.size(); ++i)
    place_.download(bytes.data() + i * row, matrix, static_cast<std::size_t>(rows[i]) * row, row);
  place_.wait();
  return values(TensorRef(static_cast<const void*>(bytes.data()), desc_.dtype, {std::ssize(rows), desc_.hidden}));
}

std::string LossBench::wrong_backward(double tolerance) {
  const auto error = [&](const char* name, double found) {
    return found <= tolerance ? std::string()
                              : fmt::format("{}: relative error {:.2e} over {} rows, allowed are {:.0e}", name, found,
                                            reference().rows.size(), tolerance);
  };
  // Norms of gradients that are nearly 0 say nothing.
  const double least = 1e-3 * std::sqrt(static_cast<double>(reference().rows.size()));
  std::string wrong = error("de", relative_error(rows_of(de_, reference().rows), reference().de, least));
  if (wrong.empty()) wrong = error("dc", relative_error(rows_of(dc_, reference().columns), reference().dc, least));
  return wrong;
}

void LossBench::begin_backward() {
  if (!reference().dc.empty()) return;
  timed("lse for backwards", [&] {
    Plan standard(desc_, {.pool = pool_, .cache = cache_});
    const ForwardArgs args = forward_args(standard, {.forward = true});
    poison();
    standard.forward(args, place_.stream());
    place_.wait();
  });
  if (const std::string wrong = wrong_forward(); !wrong.empty())
    throw InternalError(fmt::format("tune: the default's forward is wrong: {}; please report it", wrong));
  std::vector<float> lse(static_cast<std::size_t>(tokens()));
  place_.download(lse.data(), lse_, 0, lse.size() * sizeof(float));
  place_.wait();
  place_.upload(kept_lse_, lse.data());
  timed("columns", [&] { expect_columns(reference(), problem_, lse, *pool_); });
}

}  // namespace kerf::runtime
