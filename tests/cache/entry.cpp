// An entry as bytes, whole and damaged.
#include "runtime/cache/entry.h"

#include <doctest/doctest.h>

#include <cstring>
#include <random>

#include "tests/cache/scale.h"

namespace kerf::test {

namespace {

using cache::Entry;
using cache::SectionType;
using Bytes = std::vector<std::byte>;

cache::Key example() { return cache::key_of(scale(2).ir(), Target::host(), {}); }

/// As small as they come, so that every bit can be tried.
Bytes small() {
  return cache::serialize({codegen::Digest{1, 2, 3}, {{SectionType::about, Bytes(5)}, {SectionType::ptx, Bytes(9)}}});
}

void put(Bytes& bytes, std::size_t at, std::uint64_t value, std::size_t size) {
  for (std::size_t i = 0; i < size; ++i) bytes[at + i] = static_cast<std::byte>(value >> (8 * i) & 0xff);
}
/// So that only what stands in front of the hash can tell.
void sign(Bytes& bytes) {
  const codegen::Digest hash = codegen::sha256(std::span(bytes).first(bytes.size() - 32));
  std::memcpy(bytes.data() + bytes.size() - 32, hash.data(), 32);
}

}  // namespace

TEST_CASE("cache entry: host objects, PTX and cubins come back as they were") {
  const cache::Key key = example();
  const codegen::cpu::Object object{Bytes(1000, std::byte{7}), "scale", 4096};
  const auto read = cache::parse(cache::serialize(cache::to_entry(key, object)));
  REQUIRE(read);
  CHECK(read->key == cache::digest(key));
  CHECK(read->about() == cache::to_text(key));
  const auto o = cache::to_object(*read);
  REQUIRE(o);
  CHECK(o->bytes == object.bytes);
  CHECK(o->symbol == "scale");
  CHECK(o->scratch_bytes == 4096);
  CHECK(!cache::to_ptx(*read));
  CHECK(!cache::to_cubin(*read));

  codegen::nvptx::Code code;
  code.ptx = ".version 8.0";
  code.entry = "scale";
  code.threads = 384;
  code.shared_bytes = std::int64_t{1} << 40;
  code.argument_words = -3;
  code.maps = {{.tensor = 2, .rows = 128}, {.tensor = 0, .rows = 64}};
  code.aligned = {3, 1};
  const auto& [ptx, entry, threads, shared_bytes, argument_words, maps, aligned] = code;  // all that there is to keep
  const auto same = [&](const codegen::nvptx::Code& c) {
    CHECK(c.entry == entry);
    CHECK(c.threads == threads);
    CHECK(c.shared_bytes == shared_bytes);
    CHECK(c.argument_words == argument_words);
    REQUIRE(c.maps.size() == maps.size());
    for (std::size_t i = 0; i < maps.size(); ++i) {
      const auto& [tensor, rows] = c.maps[i];
      CHECK(tensor == maps[i].tensor);
      CHECK(rows == maps[i].rows);
    }
    CHECK(c.aligned == aligned);
  };
  const auto p = cache::to_ptx(*cache::parse(cache::serialize(cache::to_entry(key, code))));
  REQUIRE(p);
  same(*p);
  CHECK(p->ptx == ptx);

  const auto c = cache::to_cubin(
      *cache::parse(cache::serialize(cache::to_entry(key, cache::Cubin{code, Bytes(3, std::byte{9}), "0 spilled"}))));
  REQUIRE(c);
  same(c->code);
  CHECK(c->code.ptx.empty());
  CHECK(c->bytes == Bytes(3, std::byte{9}));
  CHECK(c->log == "0 spilled");
  CHECK(!cache::to_object(*cache::parse(cache::serialize(cache::to_entry(key, code)))));
}

TEST_CASE("cache entry: every changed bit is found, of host objects, PTX and cubins") {
  const ir::Program program = scale(2).ir();
  const codegen::nvptx::Code ptx = codegen::nvptx::compile(program, Target::cuda("sm_80"), {});
  const auto key = [&](const Target& target) { return cache::key_of(program, target, {}); };
  Bytes cubin(700);
  std::mt19937 random(2);
  for (std::byte& b : cubin) b = static_cast<std::byte>(random());
  for (const Bytes& good :
       {cache::serialize(cache::to_entry(example(), codegen::cpu::compile(program, Target::host(), {}))),
        cache::serialize(cache::to_entry(key(Target::cuda("sm_80")), ptx)),
        cache::serialize(cache::to_entry(key(Target::cuda("sm_90a")), cache::Cubin{ptx, cubin, "0 spilled"}))}) {
    REQUIRE(cache::parse(good));
    std::size_t missed = 0;
    Bytes bad = good;
    for (std::size_t bit = 0; bit < 8 * good.size(); ++bit) {
      bad[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
      missed += cache::parse(bad).has_value();
      bad[bit / 8] = good[bit / 8];
    }
    CHECK(missed == 0);
  }
}

TEST_CASE("cache entry: every end that comes early or late is found") {
  const Bytes good = cache::serialize(cache::to_entry(example(), codegen::cpu::Object{Bytes(3000), "scale", 64}));
  for (std::size_t size = 0; size < good.size(); ++size) CHECK_FALSE(cache::parse(std::span(good).first(size)));
  Bytes longer = good;
  longer.push_back({});
  CHECK_FALSE(cache::parse(longer));
}

TEST_CASE("cache entry: with a right hash over wrong numbers nothing is read past the end") {
  const Bytes good = small();
  const auto refused = [&](std::size_t at, std::uint64_t value, std::size_t size) {
    Bytes bad = good;
    put(bad, at, value, size);
    sign(bad);
    CAPTURE(at);
    CAPTURE(value);
    CHECK_FALSE(cache::parse(bad));
  };
  const std::uint64_t huge = std::uint64_t{1} << 63;
  refused(0, 0x4c, 1);                                                                   // the magic
  for (std::uint64_t format : {0, 2, 77}) refused(8, format, 4);                         // another format
  for (std::uint64_t n : {0u, 1u, 3u, 6u, 0x7fffffffu, 0xffffffffu}) refused(12, n, 4);  // sections
  for (std::uint64_t n : {std::uint64_t{0}, good.size() - 1, good.size() + 1, huge, ~std::uint64_t{0}})
    refused(16, n, 8);  // the whole
  for (std::size_t row : {56u, 80u}) {
    for (std::uint64_t type : {0u, 6u, 0xffffffffu}) refused(row, type, 4);
    refused(row + 4, 1, 4);
    for (std::uint64_t offset :
         {std::uint64_t{0}, std::uint64_t{103}, std::uint64_t{105}, good.size(), huge, ~huge, ~std::uint64_t{0}})
      refused(row + 8, offset, 8);
    for (std::uint64_t size : {std::uint64_t{0}, std::uint64_t{4}, std::uint64_t{100}, huge, ~huge, ~std::uint64_t{0},
                               ~std::uint64_t{0} - 103})
      refused(row + 16, size, 8);
  }
  refused(80, 1, 4);  // two of a type
}

TEST_CASE("cache entry: metadata that ends early, or names more than there is, holds no code") {
  Entry entry = cache::to_entry(example(), codegen::nvptx::Code{"ptx", "scale", 128, 0, 1, {{0, 64}}, {1, 2}});
  const Bytes whole = entry.sections[1].bytes;
  for (std::size_t size = 0; size < whole.size(); ++size) {
    entry.sections[1].bytes.assign(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size));
    CHECK_FALSE(cache::to_ptx(entry));
  }
  entry.sections[1].bytes = whole;
  put(entry.sections[1].bytes, 0, std::uint64_t{1} << 63, 8);
  CHECK_FALSE(cache::to_ptx(entry));
  entry.sections[1].bytes = whole;
  put(entry.sections[1].bytes, 8 + 5 + 4 + 8 + 8, ~std::uint64_t{0}, 8);  // maps
  CHECK_FALSE(cache::to_ptx(entry));
}

TEST_CASE("cache entry: garbage is no entry") {
  std::mt19937 random(1);
  for (int i = 0; i < 2000; ++i) {
    Bytes bytes(random() % 300);
    for (std::byte& b : bytes) b = static_cast<std::byte>(random());
    if (i % 2 && bytes.size() >= 12) std::memcpy(bytes.data(), "KERFCODE\1\0\0\0", 12);
    if (i % 4 == 3 && bytes.size() >= 88) {
      put(bytes, 12, random() % 6, 4);
      put(bytes, 16, bytes.size(), 8);
      sign(bytes);
    }
    if (const auto entry = cache::parse(bytes)) CHECK(cache::serialize(*entry) == bytes);
  }
}

}  // namespace kerf::test
