#include "runtime/cache/entry.h"

#include <cstring>

#include "tests/fuzz/checks.h"

namespace kerf::fuzz {

namespace {

constexpr std::size_t size_at = 16, hash_bytes = 32;

/// The same with the size and the hash that a writer would have put there, so that what they guard is reached.
std::vector<std::byte> signed_anew(std::vector<std::byte> bytes) {
  if (bytes.size() < size_at + 8 + hash_bytes) return bytes;
  for (std::size_t i = 0; i < 8; ++i) bytes[size_at + i] = static_cast<std::byte>(bytes.size() >> (8 * i) & 0xff);
  const std::size_t end = bytes.size() - hash_bytes;
  const codegen::Digest hash = codegen::sha256(std::span(bytes).first(end));
  std::memcpy(bytes.data() + end, hash.data(), hash_bytes);
  return bytes;
}

void check(const std::vector<std::byte>& bytes) {
  const std::optional<cache::Entry> entry = cache::parse(bytes);
  if (!entry) return;
  require(cache::serialize(*entry) == bytes, "an entry has two forms");
  entry->about();

  const cache::Key key{};
  const auto again = [](const cache::Entry& e) {
    std::optional<cache::Entry> read = cache::parse(cache::serialize(e));
    require(read.has_value(), "what was written is not read");
    return *std::move(read);
  };
  const auto same_code = [](const codegen::nvptx::Code& a, const codegen::nvptx::Code& b) {
    return a.entry == b.entry && a.threads == b.threads && a.shared_bytes == b.shared_bytes &&
           a.argument_words == b.argument_words && a.maps.size() == b.maps.size() && a.aligned == b.aligned;
  };
  if (const auto object = cache::to_object(*entry)) {
    const auto o = cache::to_object(again(cache::to_entry(key, *object)));
    require(o && o->bytes == object->bytes && o->symbol == object->symbol && o->scratch_bytes == object->scratch_bytes,
            "an object changed");
  }
  if (const auto ptx = cache::to_ptx(*entry)) {
    const auto p = cache::to_ptx(again(cache::to_entry(key, *ptx)));
    require(p && p->ptx == ptx->ptx && same_code(*p, *ptx), "PTX changed");
  }
  if (const auto cubin = cache::to_cubin(*entry)) {
    const auto c = cache::to_cubin(again(cache::to_entry(key, *cubin)));
    require(c && c->bytes == cubin->bytes && c->log == cubin->log && same_code(c->code, cubin->code),
            "a cubin changed");
  }
}

}  // namespace

void cache_entry(Bytes bytes) {
  const auto all = std::as_bytes(bytes);
  check({all.begin(), all.end()});
  check(signed_anew({all.begin(), all.end()}));
}

}  // namespace kerf::fuzz
