// From a program to blocks on a device. A launch touches the heap for its few argument words and asks the driver where
// each pointer lies; it allocates nothing on the device and waits for nothing.
#include "runtime/cuda/program.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "codegen/cpu/jit.h"
#include "kerf/error.h"
#include "runtime/cache/cache.h"

namespace kerf::cuda {

namespace {

/// What the driver takes as a kernel's parameters on every device since compute capability 2.0.
constexpr std::int64_t parameter_limit = 4096;

/// The tensor as the matrix that a map describes: packed tiles stand one below the other.
TensorRef matrix(const ir::Program& program, const ir::Bound& bound, int tensor) {
  const ir::TensorInfo& info = program.tensors[static_cast<std::size_t>(tensor)];
  TensorRef ref = bound.tensors[static_cast<std::size_t>(tensor)];
  if (info.list < 0) return ref;
  const ir::ListInfo& list = program.lists[static_cast<std::size_t>(info.list)];
  const bool rows_first = info.axes.back() == list.column_axis;
  const std::int64_t columns = rows_first ? list.column_extent : list.row_extent;
  const std::int64_t rows = rows_first ? list.row_extent : list.column_extent;
  ref.rank = 2;
  ref.shape[0] = rows * bound.lists[static_cast<std::size_t>(info.list)].count;
  ref.shape[1] = columns;
  ref.strides[0] = columns;
  ref.strides[1] = 1;
  return ref;
}

void require_on_device(const Device& device, const ir::Program& program, const ir::Bound& bound) {
  const auto check = [&](const void* pointer, const std::string& what) {
    if (pointer) device.require_memory(pointer, what);
  };
  for (std::size_t i = 0; i < program.tensors.size(); ++i)
    if (bound.tensors[i].elements() > 0) check(bound.tensors[i].data, program.name + ": " + program.tensors[i].name);
  for (std::size_t i = 0; i < program.lists.size(); ++i) {
    const TileListRef& l = bound.lists[i];
    const std::string what = program.name + ": tile list " + program.lists[i].name;
    if (l.count > 0)
      for (const std::int32_t* p : {l.row, l.column, l.row_items, l.column_items}) check(p, what);
    for (const std::int32_t* p : {l.row_begin, l.column_begin, l.device_count}) check(p, what);
  }
  for (std::size_t i = 0; i < program.axes.size(); ++i)
    check(bound.device_sizes[i], program.name + ": the size of " + program.axes[i].name);
}

}  // namespace

LoadedCode::LoadedCode(std::shared_ptr<const Device> device, const ir::Program& program,
                       const codegen::nvptx::Code& code)
    : module_(std::move(device), code.ptx, program.name) {
  adopt(program, code);
}

LoadedCode::LoadedCode(std::shared_ptr<const Device> device, const ir::Program& program,
                       const codegen::nvptx::Code& code, const Translated& translated)
    : module_(std::move(device), translated, program.name) {
  adopt(program, code);
}

void LoadedCode::adopt(const ir::Program& program, const codegen::nvptx::Code& code) {
  function_ = module_.function(code.entry, code.threads, code.shared_bytes);
  maps_ = code.maps;
  aligned_ = code.aligned;
  argument_words_ = code.argument_words;
  for (const codegen::nvptx::TensorMap& map : maps_) aligned_.push_back(map.tensor);
  const std::int64_t bytes = static_cast<std::int64_t>(maps_.size() * sizeof(api::TensorMapBits)) + 8 * argument_words_;
  if (bytes > parameter_limit)
    throw DeviceError(fmt::format("compile: {} takes {} bytes of arguments, a GPU kernel at most {}: use fewer tensors",
                                  program.name, bytes, parameter_limit));
}

std::string LoadedCode::unfit(const ir::Program& program, const ir::Bound& bound) const {
  for (int t : aligned_) {
    const std::string why = unfit_for_map(matrix(program, bound, t));
    if (!why.empty()) return fmt::format("{}: {}", program.tensors[static_cast<std::size_t>(t)].name, why);
  }
  return {};
}

void LoadedCode::launch(const ir::Program& program, const ir::Bound& bound, Stream stream) const {
  const Device& device = module_.device();
  const Current current(device);  // the driver describes tensors only to a context
  std::vector<api::TensorMapBits> maps;
  maps.reserve(maps_.size());
  for (const codegen::nvptx::TensorMap& map : maps_)
    maps.push_back(encode_tensor_map(device.driver(), {map.rows}, matrix(program, bound, map.tensor)));

  std::vector<std::int64_t> words = codegen::cpu::pack_args(program, bound);
  for (const std::int64_t* p : bound.device_sizes)
    words.push_back(static_cast<std::int64_t>(reinterpret_cast<std::intptr_t>(p)));
  if (static_cast<std::int64_t>(words.size()) != argument_words_)
    throw InternalError(fmt::format("{}: a launch has {} words of arguments, the code takes {}", program.name,
                                    words.size(), argument_words_));

  std::vector<void*> parameters;
  parameters.reserve(maps.size() + 1);
  for (api::TensorMapBits& map : maps) parameters.push_back(&map);
  parameters.push_back(words.data());
  const std::int64_t at_once = std::int64_t{device.info().multiprocessors} * function_.blocks_per_multiprocessor;
  cuda::launch(device, function_, std::min(bound.instances, at_once), parameters, stream);
}

KernelResources LoadedCode::resources() const {
  KernelResources r;
  r.registers = function_.registers;
  r.threads = function_.threads;
  r.blocks = function_.blocks_per_multiprocessor;
  r.shared_bytes = function_.static_shared_bytes + function_.dynamic_shared_bytes;
  r.local_bytes = function_.local_bytes;
  r.jit_ms = module_.jit_ms();
  return r;
}

std::shared_ptr<const LoadedCode> load_code(const std::shared_ptr<CodeCache>& cache,
                                            const std::shared_ptr<const Device>& device, const ir::Program& program,
                                            const Target& target, const Schedule& schedule, bool any_stride) {
  using codegen::nvptx::Code;
  const auto lower = [&] { return codegen::nvptx::compile(program, target, schedule, any_stride); };
  if (!cache) return std::make_shared<const LoadedCode>(device, program, lower());

  const cache::Key key = cache::key_of(program, target, schedule, any_stride);
  const auto ptx = [&] {
    return cache->impl().get<Code>(
        key, "",
        [](const cache::Entry& entry) {
          auto code = cache::to_ptx(entry);
          return code ? std::make_shared<const Code>(std::move(*code)) : nullptr;
        },
        [&](std::optional<cache::Entry>& entry) {
          const auto code = std::make_shared<const Code>(lower());
          entry = cache::to_entry(key, *code);
          return code;
        });
  };
  if (!cache->impl().has_folders()) return std::make_shared<const LoadedCode>(device, program, *ptx());

  cache::Key translated = key;
  translated.driver = device->driver().version();
  translated.capability = 10 * device->info().major + device->info().minor;
  return cache->impl().get<LoadedCode>(
      translated, fmt::format(" cuda:{}", device->info().ordinal),
      [&](const cache::Entry& entry) -> std::shared_ptr<const LoadedCode> {
        const auto cubin = cache::to_cubin(entry);
        if (!cubin) return nullptr;
        return std::make_shared<const LoadedCode>(device, program, cubin->code, Translated{cubin->bytes, cubin->log});
      },
      [&](std::optional<cache::Entry>& entry) -> std::shared_ptr<const LoadedCode> {
        const auto code = ptx();
        if (const auto made = translate(*device, code->ptx, program.name)) {
          try {
            auto loaded = std::make_shared<const LoadedCode>(device, program, *code, *made);
            entry = cache::to_entry(translated, cache::Cubin{*code, made->cubin, made->log});
            return loaded;
          } catch (const InternalError&) {  // the PTX may do
          }
        }
        return std::make_shared<const LoadedCode>(device, program, *code);
      });
}

CompiledProgram::CompiledProgram(std::shared_ptr<const Device> device, const ir::Program& program, const Target& target,
                                 const Schedule& schedule, std::shared_ptr<CodeCache> cache)
    : device_(std::move(device)),
      target_(target),
      schedule_(schedule),
      cache_(std::move(cache)),
      code_(load_code(cache_, device_, program, target, schedule, false)) {}

void CompiledProgram::launch(const ir::Program& program, const ir::Bound& bound, Stream stream) const {
  require_on_device(*device_, program, bound);
  if (bound.instances == 0) return;
  if (code_->unfit(program, bound).empty()) return code_->launch(program, bound, stream);
  // Loading is allowed while a stream is being captured.
  std::call_once(plain_once_, [&] { plain_ = load_code(cache_, device_, program, target_, schedule_, true); });
  plain_->launch(program, bound, stream);
}

}  // namespace kerf::cuda
