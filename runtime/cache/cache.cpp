#include "runtime/cache/cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>

#include "kerf/error.h"

namespace kerf {

namespace {

std::string variable(const char* name) {
  const char* const value = std::getenv(name);
  return value ? value : "";
}

}  // namespace

CacheOptions CacheOptions::from_environment() {
  CacheOptions options;
  if (variable("KERF_CACHE") == "off") return options;
  const std::string xdg = variable("XDG_CACHE_HOME"), home = variable("HOME");
  if (const std::string named = variable("KERF_CACHE_DIR"); !named.empty())
    options.folder = named;
  else if (!xdg.empty())
    options.folder = xdg + "/kerf";
  else if (!home.empty())
    options.folder = home + "/.cache/kerf";
  const std::string layers = variable("KERF_CACHE_RO");
  for (std::size_t begin = 0; begin < layers.size();) {
    const std::size_t end = std::min(layers.find(':', begin), layers.size());
    if (end > begin) options.read_only.push_back(layers.substr(begin, end - begin));
    begin = end + 1;
  }
  return options;
}

CodeCache::CodeCache(const CacheOptions& options) : impl_(std::make_unique<Impl>(options)) {}
CodeCache::~CodeCache() = default;
CacheStatus CodeCache::status() const { return impl_->status(); }

CacheStatus CodeCache::Impl::status() {
  open_folders();
  CacheStatus s;
  if (folder_) s.folder = folder_->path();
  for (const auto& layer : layers_) s.read_only.push_back(layer->path());
  s.compiled = compiled_;
  s.from_memory = from_memory_;
  s.from_folders = from_folders_;
  const std::scoped_lock lock(mutex_);
  s.warnings = warnings_;
  return s;
}

bool CodeCache::Impl::has_folders() {
  open_folders();
  return folder_ || !layers_.empty();
}

void CodeCache::Impl::warn(const std::string& text) {
  const std::scoped_lock lock(mutex_);
  if (std::find(warnings_.begin(), warnings_.end(), text) == warnings_.end()) warnings_.push_back(text);
}

void CodeCache::Impl::open_folders() {
  std::call_once(opened_, [&] {
    std::string why;
    if (!options_.folder.empty()) {
      folder_ = cache::Folder::open(options_.folder, cache::Access::own, why);
      if (!folder_) warn(fmt::format("code is kept in memory alone: {}", why));
    }
    for (const std::string& path : options_.read_only) {
      if (auto layer = cache::Folder::open(path, cache::Access::layer, why))
        layers_.push_back(std::move(layer));
      else
        warn(fmt::format("not looked into: {}", why));
    }
  });
}

std::shared_ptr<const void> CodeCache::Impl::get_any(const cache::Key& key, const std::string& where,
                                                     const Use<void>& use, const Make<void>& make) {
  open_folders();
  const codegen::Digest digest = cache::digest(key);
  std::shared_ptr<Slot> slot;
  {
    const std::scoped_lock lock(mutex_);
    std::shared_ptr<Slot>& known = slots_[codegen::to_hex(digest) + where];
    if (!known) known = std::make_shared<Slot>();
    slot = known;
  }
  const std::scoped_lock lock(slot->mutex);
  if (auto value = slot->value ? slot->value : slot->loose.lock()) {
    ++from_memory_;
    return value;
  }
  const auto keep = [&](std::shared_ptr<const void> value) {
    if (where.empty())
      slot->value = value;
    else
      slot->loose = value;
    return value;
  };
  const std::string about = fmt::format("{} for {}", key.program, key.target.level());
  if (auto value = from_folders(digest, about, use)) return keep(std::move(value));
  if (!make) return nullptr;
  cache::File turn;
  if (folder_ && writes_) {
    turn = folder_->lock(digest, patience_);
    if (auto value = from_folders(digest, about, use)) return keep(std::move(value));
  }
  std::optional<cache::Entry> entry;
  auto value = keep(make(entry));
  ++compiled_;
  if (entry) publish(digest, *entry);
  return value;
}

std::shared_ptr<const void> CodeCache::Impl::from_folders(const codegen::Digest& key, const std::string& about,
                                                          const Use<void>& use) {
  const auto look = [&](const cache::Folder& folder, bool own) -> std::shared_ptr<const void> {
    const cache::Folder::Read read = folder.read(key);
    if (read.found == cache::Folder::Found::nothing) return nullptr;
    if (read.found == cache::Folder::Found::entry) {
      try {
        if (auto value = use(read.entry)) return value;
      } catch (const InternalError&) {
      }
      if (own) folder.condemn(key);
    }
    warn(fmt::format("{}: the entry of {} is damaged, {}", folder.path(), about,
                     own ? "and was moved to bad/" : "and is not used"));
    return nullptr;
  };
  std::shared_ptr<const void> value;
  if (folder_) value = look(*folder_, true);
  for (std::size_t i = 0; i < layers_.size() && !value; ++i) value = look(*layers_[i], false);
  if (value) ++from_folders_;
  return value;
}

void CodeCache::Impl::publish(const codegen::Digest& key, const cache::Entry& entry) {
  if (!folder_ || !writes_) return;
  const std::string failure = folder_->publish(key, cache::serialize(entry));
  if (failure.empty()) return folder_->sweep_sometimes(options_.limit_bytes);
  if (writes_.exchange(false))
    warn(fmt::format("{}: cannot be written, new code is kept in memory alone: {}", folder_->path(), failure));
}

namespace cache {

namespace {

using codegen::cpu::Code;

std::shared_ptr<const Code> load(const Entry& entry) {
  const std::optional<codegen::cpu::Object> object = to_object(entry);
  return object ? std::make_shared<const Code>(codegen::cpu::load(*object)) : nullptr;
}

}  // namespace

std::shared_ptr<const Code> cpu_code(CodeCache* cache, const ir::Program& program, const Target& target,
                                     const Schedule& schedule) {
  codegen::cpu::require_runnable(target);
  if (!cache) return std::make_shared<const Code>(codegen::cpu::load(codegen::cpu::compile(program, target, schedule)));
  const Key key = key_of(program, target, schedule);
  return cache->impl().get<Code>(key, "", load, [&](std::optional<Entry>& entry) {
    const codegen::cpu::Object object = codegen::cpu::compile(program, target, schedule);
    entry = to_entry(key, object);
    return std::make_shared<const Code>(codegen::cpu::load(object));
  });
}

std::shared_ptr<const Code> kept_cpu_code(CodeCache* cache, const ir::Program& program, const Target& target,
                                          const Schedule& schedule) {
  if (!cache) return nullptr;
  codegen::cpu::require_runnable(target);
  return cache->impl().get<Code>(key_of(program, target, schedule), "", load, {});
}

}  // namespace cache
}  // namespace kerf
