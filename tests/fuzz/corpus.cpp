// The bytes that fuzzing begins with, and those that it found to break something: none does any more.
#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "tests/fuzz/checks.h"

namespace kerf::fuzz {

namespace {

/// Where the sources lie, or beside the test program's folder, as in the archive for machines with a GPU.
std::filesystem::path corpus() {
  const std::filesystem::path sources = KERF_TESTS_DIR "/fuzz/corpus";
  if (std::filesystem::exists(sources)) return sources;
  return std::filesystem::read_symlink("/proc/self/exe").parent_path().parent_path() / "tests/fuzz/corpus";
}

void read_all(const std::string& name, void (*check)(Bytes)) {
  int files = 0;
  for (const auto& file : std::filesystem::directory_iterator(corpus() / name)) {
    CAPTURE(file.path().string());
    std::ifstream in(file.path(), std::ios::binary);
    const std::string text((std::istreambuf_iterator<char>(in)), {});
    const Bytes bytes(reinterpret_cast<const std::uint8_t*>(text.data()), text.size());
    CHECK_NOTHROW(check(bytes));
    for (std::size_t size = 0; size < bytes.size(); size += 1 + bytes.size() / 40) {
      CAPTURE(size);
      CHECK_NOTHROW(check(bytes.first(size)));
    }
    ++files;
  }
  CHECK(files > 5);
}

}  // namespace

TEST_CASE("fuzz corpus: wisdom is read or refused, and written so that it is read as the same") {
  read_all("wisdom", wisdom);
}
TEST_CASE("fuzz corpus: so are entries of the cache") { read_all("cache_entry", cache_entry); }
TEST_CASE("fuzz corpus: so is tile IR, and the passes take what verifies") { read_all("tile_ir", tile_ir); }

}  // namespace kerf::fuzz
