#include "tools/kerf/loss_call.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <utility>

namespace kerf::tools {
namespace {

constexpr std::size_t guard_bytes = 256;
constexpr int guard_pattern = 0xa5, nan_pattern = 0xff;  // all ones is a NaN in every float type
constexpr auto guard = [] {
  std::array<unsigned char, guard_bytes> bytes{};
  bytes.fill(guard_pattern);
  return bytes;
}();

void find_unwritten(const char* name, const Buffer& b, std::size_t bytes, DType dtype, std::int64_t columns,
                    std::vector<std::string>& found) {
  const std::int64_t elements = static_cast<std::int64_t>(bytes) / size_of(dtype);
  std::atomic<std::int64_t> bad = 0, first = elements;
  in_pieces(elements, 1 << 16, [&](std::int64_t begin, std::int64_t end) {
    std::vector<double> x(static_cast<std::size_t>(end - begin));
    to_double(element(static_cast<const void*>(b.data()), dtype, begin), dtype, end - begin, x.data());
    for (std::int64_t i = begin; i < end; ++i) {
      if (std::isfinite(x[static_cast<std::size_t>(i - begin)])) continue;
      ++bad;
      std::int64_t old = first;
      while (i < old && !first.compare_exchange_weak(old, i)) {
      }
    }
  });
  if (bad > 0)
    found.push_back(fmt::format("{}: {} of {} elements are NaN or infinite, the first in row {}, column {}", name,
                                bad.load(), elements, first / columns, first % columns));
}

}  // namespace

bool LossCall::Array::guard_written() const {
  return std::memcmp(host.data() + host.size() - guard_bytes, guard.data(), guard_bytes) != 0;
}

LossCall::Array LossCall::array(std::size_t bytes, bool fetched) const {
  Array a;
  a.bytes = bytes;
  a.host = Buffer((fetched || !gpu_ ? bytes : 0) + guard_bytes);
  if (gpu_) a.device = cuda::Buffer(gpu_, bytes + guard_bytes);
  return a;
}

LossCall::LossCall(const Problem& problem, const PlanDesc& desc, const std::vector<std::int64_t>& order,
                   std::size_t stash_limit)
    : problem_(problem),
      gpu_(desc.device.type == DeviceType::cuda ? cuda::Device::open(desc.device.ordinal) : nullptr),
      plan_(desc) {
  if (gpu_) stream_.emplace(gpu_);
  if (!order.empty()) plan_.set_order(order);
  const ProblemSpec& s = problem.spec;
  const bool per_row = s.reduction == Reduction::none;
  const std::int64_t losses = per_row ? s.tokens : 1;
  const auto output = [&](std::int64_t elements, DType dtype) {
    return array(static_cast<std::size_t>(elements * size_of(dtype)), true);
  };
  loss_ = output(losses, f32);
  lse_ = output(s.tokens, f32);
  de_ = output(s.tokens * s.hidden, s.dtype);
  dc_ = output(s.vocabulary * s.hidden, s.dtype);
  std::int64_t blocks = 0, padded = 0;
  if (plan_.filters()) {
    const auto shape = plan_.block_lse_shape(s.tokens);
    blocks = shape[0], padded = shape[1];
    block_lse_ = array(static_cast<std::size_t>(blocks * padded) * sizeof(float), false);
  }
  const std::size_t stash = std::min(plan_.stash_bytes(s.tokens), stash_limit);
  if (stash > 0) stash_ = array(stash, false);
  workspace_ = array(workspace_bytes() - block_lse_.bytes - stash_.bytes, false);
  poison();

  const auto tensor = [&](const void* data, DType dtype, std::initializer_list<std::int64_t> shape) {
    return TensorRef(data, dtype, shape, desc.device);
  };
  const auto input = [&](const void* host, DType dtype, std::initializer_list<std::int64_t> shape) {
    TensorRef t = tensor(host, dtype, shape);
    if (!gpu_) return t;
    const auto bytes = static_cast<std::size_t>(t.elements() * size_of(dtype));
    inputs_.emplace_back(gpu_, std::max<std::size_t>(bytes, 1));
    inputs_.back().upload(host, bytes, stream());
    t.data = inputs_.back().data();
    return t;
  };
  forward_.e = input(problem.e.data(), s.dtype, {s.tokens, s.hidden});
  forward_.c = input(problem.c.data(), s.dtype, {s.vocabulary, s.hidden});
  forward_.target = input(problem.target.data(), i64, {s.tokens});
  forward_.loss = tensor(loss_.data(), f32, {losses});
  forward_.lse = tensor(lse_.data(), f32, {s.tokens});
  forward_.workspace = tensor(workspace_.data(), boolean, {static_cast<std::int64_t>(workspace_.bytes)});
  if (blocks > 0) forward_.block_lse = tensor(block_lse_.data(), f32, {blocks, padded});
  if (stash > 0) forward_.stash = tensor(stash_.data(), boolean, {static_cast<std::int64_t>(stash)});
  backward_.block_lse = forward_.block_lse;
  backward_.stash = forward_.stash;
  backward_.e = forward_.e;
  backward_.c = forward_.c;
  backward_.target = forward_.target;
  backward_.lse = forward_.lse;
  backward_.grad_loss = input(problem.grad_loss.data(), f32, {losses});
  backward_.de = tensor(de_.data(), s.dtype, {s.tokens, s.hidden});
  backward_.dc = tensor(dc_.data(), s.dtype, {s.vocabulary, s.hidden});
  backward_.workspace = forward_.workspace;
  if (stream_) stream_->synchronize();
}

void LossCall::poison() {
  for (const Array* a : {&loss_, &lse_, &de_, &dc_, &block_lse_, &stash_, &workspace_}) {
    if (!a->data()) continue;
    if (gpu_) {
      a->device.fill(nan_pattern, stream());
      a->device.upload(guard.data(), guard_bytes, stream(), a->bytes);
      continue;
    }
    in_pieces(static_cast<std::int64_t>(a->bytes), 1 << 24, [&](std::int64_t begin, std::int64_t end) {
      std::memset(a->host.data() + begin, nan_pattern, static_cast<std::size_t>(end - begin));
    });
    std::memcpy(a->host.data() + a->bytes, guard.data(), guard_bytes);
  }
}

void LossCall::fetch() {
  if (!gpu_) return;
  for (const Array* a : {&loss_, &lse_, &de_, &dc_, &block_lse_, &stash_, &workspace_}) {
    if (!a->data()) continue;
    const std::size_t bytes = a->host.size();
    a->device.download(a->host.data(), bytes, stream(), a->device.bytes() - bytes);
  }
  stream_->synchronize();
}

std::vector<std::string> LossCall::defects() const {
  std::vector<std::string> found;
  const ProblemSpec& s = problem_.spec;
  const bool nan_is_right = s.reduction == Reduction::mean && problem_.valid == 0;
  const std::pair<const char*, const Array*> arrays[] = {{"loss", &loss_},
                                                         {"lse", &lse_},
                                                         {"de", &de_},
                                                         {"dc", &dc_},
                                                         {"block_lse", &block_lse_},
                                                         {"stash", &stash_},
                                                         {"workspace", &workspace_}};
  for (const auto& [name, a] : arrays)
    if (a->data() && a->guard_written()) found.push_back(fmt::format("{}: bytes past its end were written", name));
  if (!nan_is_right) find_unwritten("loss", loss_.host, loss_.bytes, f32, 1, found);
  find_unwritten("lse", lse_.host, lse_.bytes, f32, 1, found);
  find_unwritten("de", de_.host, de_.bytes, s.dtype, s.hidden, found);
  find_unwritten("dc", dc_.host, dc_.bytes, s.dtype, s.hidden, found);
  std::vector<double> row(static_cast<std::size_t>(s.hidden));
  for (std::int64_t n = 0; n < s.tokens; ++n) {
    if (problem_.target[static_cast<std::size_t>(n)] != Problem::ignore_index) continue;
    to_double(element(de(), s.dtype, n * s.hidden), s.dtype, s.hidden, row.data());
    const bool zero = lse()[n] == 0 && (s.reduction != Reduction::none || loss()[n] == 0) &&
                      std::all_of(row.begin(), row.end(), [](double x) { return x == 0; });
    if (zero) continue;
    found.push_back(fmt::format("row {} is ignored, and its loss, lse or de is not 0", n));
    break;
  }
  return found;
}

}  // namespace kerf::tools
