// The folder of entries: what is trusted, what is kept, what goes.
#include "runtime/cache/folder.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <cstring>
#include <functional>
#include <random>
#include <set>
#include <thread>

#include "kerf/loss.h"
#include "tests/cache/support.h"

namespace kerf::test {

namespace {

using namespace std::chrono_literals;
using cache::Access;
using cache::Folder;
using Found = Folder::Found;

codegen::Digest digest_of(unsigned n) { return codegen::sha256(std::as_bytes(std::span(&n, 1))); }
cache::Entry entry_of(unsigned n, std::size_t size = 500) {
  return {digest_of(n), {{cache::SectionType::object, std::vector<std::byte>(size, static_cast<std::byte>(n))}}};
}

std::unique_ptr<Folder> opened(const fs::path& path, Access access = Access::own, Folder::Outside outside = {}) {
  std::string why;
  auto folder = Folder::open(path.string(), access, why, std::move(outside));
  REQUIRE_MESSAGE(folder, why);
  return folder;
}
std::string refusal(const fs::path& path, Access access = Access::own) {
  std::string why;
  return Folder::open(path.string(), access, why) ? "" : why;
}
std::string publish(const Folder& folder, unsigned n, std::size_t size = 500) {
  return folder.publish(digest_of(n), cache::serialize(entry_of(n, size)));
}
fs::path file_of(const fs::path& folder, unsigned n) { return folder / "v1" / cache::file_name(digest_of(n)); }
std::size_t bad_in(const fs::path& folder) {
  std::error_code error;
  const fs::directory_iterator at(folder / "bad", error);
  return error ? 0 : static_cast<std::size_t>(std::distance(at, fs::directory_iterator()));
}
bool is_root() { return geteuid() == 0; }

void set_used(const fs::path& file, Folder::Clock::time_point at) {
  const timespec t{std::chrono::duration_cast<std::chrono::seconds>(at.time_since_epoch()).count(), 0},
      times[2] = {t, t};
  REQUIRE(utimensat(AT_FDCWD, file.c_str(), times, AT_SYMLINK_NOFOLLOW) == 0);
}
Folder::Clock::time_point used(const fs::path& file) {
  struct stat s {};
  REQUIRE(lstat(file.c_str(), &s) == 0);
  return Folder::Clock::time_point(std::chrono::seconds(s.st_mtim.tv_sec));
}

}  // namespace

TEST_CASE("cache folder: what is published is read, by others too, and the files are the owner's alone") {
  const NewFolder at;
  const auto folder = opened(at / "a/b/kerf");
  CHECK(folder->read(digest_of(1)).found == Found::nothing);
  CHECK(publish(*folder, 1) == "");
  CHECK(publish(*folder, 1) == "");  // as another process would
  const Folder::Read read = opened(at / "a/b/kerf", Access::look)->read(digest_of(1));
  REQUIRE(read.found == Found::entry);
  CHECK(cache::serialize(read.entry) == cache::serialize(entry_of(1)));
  struct stat s {};
  REQUIRE(stat((at / "a").c_str(), &s) == 0);
  CHECK((s.st_mode & 0777) == 0700);
  REQUIRE(stat(file_of(at / "a/b/kerf", 1).c_str(), &s) == 0);
  CHECK((s.st_mode & 0777) == 0600);
  CHECK(s.st_nlink == 1);
  CHECK(files_in(at / "a").size() == 1);
}

TEST_CASE("cache folder: folders that others can change are not used") {
  const NewFolder at;
  const fs::path mine = at / "mine";
  fs::create_directory(mine);
  for (const fs::perms more : {fs::perms::others_write, fs::perms::group_write}) {
    fs::permissions(mine, fs::perms::owner_all | more);
    CHECK(refusal(mine).find("can be written by other users") != std::string::npos);
    CHECK(refusal(mine / "kerf").find("can be written by other users") != std::string::npos);
    CHECK(refusal(mine, Access::layer).find("can be written by other users") != std::string::npos);
  }
  // Others may make files beside it, and not put one in its place.
  fs::permissions(mine, fs::perms::all | fs::perms::sticky_bit);
  CHECK(refusal(mine / "kerf") == "");
  fs::permissions(mine, fs::perms::owner_all);

  fs::create_directory_symlink(mine, at / "link");
  CHECK(refusal(at / "link").ends_with("is a symbolic link or no folder"));
  CHECK(refusal(at / "link/kerf") == "");  // the way there may have one
  std::ofstream(at / "file") << "x";
  CHECK(refusal(at / "file").ends_with("is a symbolic link or no folder"));
  CHECK(refusal(at / "file/kerf") != "");
  CHECK(refusal("relative/kerf") == "relative/kerf: is no absolute path");
  CHECK(refusal("") == ": is no absolute path");
  CHECK(refusal("/") == "/: is the root of the file system");
  CHECK(refusal(at / std::string(300, 'x')).find("File name too long") != std::string::npos);
  CHECK(refusal("/proc/kerf") != "");
  CHECK(refusal(at / "absent", Access::look) != "");
  CHECK(refusal(at / "absent", Access::layer) != "");
  CHECK(!fs::exists(at / "absent"));

  fs::create_directories(at / "inside/kerf");
  fs::create_directory_symlink(mine, at / "inside/kerf/v1");
  CHECK(refusal(at / "inside/kerf").find("v1") != std::string::npos);
}

TEST_CASE("cache folder: another user's folder is not used" * doctest::skip(!is_root())) {
  const NewFolder at;
  fs::create_directories(at / "theirs/kerf");
  REQUIRE(chown((at / "theirs").c_str(), 4242, 4242) == 0);
  CHECK(refusal(at / "theirs").ends_with(fmt::format("belongs to user 4242, this process is of user {}", geteuid())));
  CHECK(refusal(at / "theirs/kerf").ends_with("theirs belongs to user 4242"));
  REQUIRE(chown((at / "theirs").c_str(), 0, 0) == 0);
  const auto folder = opened(at / "theirs");
  CHECK(publish(*folder, 1) == "");
  REQUIRE(chown(file_of(at / "theirs", 1).c_str(), 4242, 4242) == 0);
  CHECK(folder->read(digest_of(1)).found == Found::damaged);
  CHECK(folder->read(digest_of(1)).found == Found::nothing);
}

TEST_CASE("cache folder: what does not verify is moved away, eight of them are kept, and a new one takes its place") {
  const NewFolder at;
  const auto folder = opened(at / "kerf");
  const auto good = cache::serialize(entry_of(1));
  std::mt19937 random(3);
  const auto damaged_by = [&](auto damage) {
    CHECK(publish(*folder, 1) == "");
    damage(file_of(at / "kerf", 1));
    CHECK(folder->read(digest_of(1)).found == Found::damaged);
    CHECK(folder->read(digest_of(1)).found == Found::nothing);
  };
  for (int percent = 0; percent < 100; ++percent)
    damaged_by([&](const fs::path& f) { fs::resize_file(f, good.size() * static_cast<std::size_t>(percent) / 100); });
  CHECK(bad_in(at / "kerf") == 8);
  for (int i = 0; i < 50; ++i)
    damaged_by([&](const fs::path& f) {
      std::vector<std::byte> bytes = good;
      bytes[random() % bytes.size()] ^= static_cast<std::byte>(1 << random() % 8);
      write_bytes(f, bytes);
    });
  damaged_by([&](const fs::path& f) { write_bytes(f, cache::serialize(entry_of(2))); });  // of another key
  damaged_by([&](const fs::path& f) { write_bytes(f, std::vector<std::byte>(700, std::byte{0x5a})); });
  for (const std::size_t at_byte : {0u, 8u})  // not the magic; a later format
    damaged_by([&](const fs::path& f) {
      std::vector<std::byte> bytes = good;
      bytes[at_byte] = std::byte{2};
      const codegen::Digest hash = codegen::sha256(std::span(bytes).first(bytes.size() - 32));
      std::memcpy(bytes.data() + bytes.size() - 32, hash.data(), 32);
      write_bytes(f, bytes);
    });
  damaged_by([&](const fs::path& f) { fs::permissions(f, fs::perms::all); });
  damaged_by([&](const fs::path& f) { fs::resize_file(f, cache::largest_entry + 1); });
  damaged_by([&](const fs::path& f) { fs::remove(f), fs::create_symlink("/dev/zero", f); });
  damaged_by([&](const fs::path& f) { fs::remove(f), fs::create_symlink("/nonexistent", f); });
  damaged_by([&](const fs::path& f) {
    fs::remove(f);
    REQUIRE(mkfifo(f.c_str(), 0600) == 0);
  });
  damaged_by([&](const fs::path& f) { fs::remove(f), fs::create_directory(f); });
  if (is_root() && mknod((at / "zero").c_str(), S_IFCHR | 0600, makedev(1, 5)) == 0)
    damaged_by([&](const fs::path& f) { fs::remove(f), fs::rename(at / "zero", f); });
  CHECK(bad_in(at / "kerf") == 8);
  CHECK(publish(*folder, 1) == "");
  CHECK(folder->read(digest_of(1)).found == Found::entry);
}

TEST_CASE("cache folder: a layer is only read, whatever is in it") {
  const NewFolder at;
  {
    const auto folder = opened(at / "layer");
    publish(*folder, 1);
    publish(*folder, 2);
  }
  fs::resize_file(file_of(at / "layer", 2), 100);
  set_used(file_of(at / "layer", 1), Folder::Clock::now() - 24h);
  const auto before = used(file_of(at / "layer", 1));
  const std::size_t files = files_in(at / "layer").size();
  const auto layer = opened(at / "layer", Access::layer);
  CHECK(layer->read(digest_of(1)).found == Found::entry);
  CHECK(layer->read(digest_of(2)).found == Found::damaged);
  CHECK(layer->read(digest_of(2)).found == Found::damaged);
  CHECK(used(file_of(at / "layer", 1)) == before);
  CHECK(files_in(at / "layer").size() == files);
  fs::create_directory(at / "empty");
  CHECK(opened(at / "empty", Access::layer)->read(digest_of(1)).found == Found::nothing);
}

TEST_CASE("cache folder: a write that fails leaves nothing behind and says why") {
  const NewFolder at;
  for (const auto& [error, text] : {std::pair{ENOSPC, "No space left on device"},
                                    {EDQUOT, "Disk quota exceeded"},
                                    {EIO, "Input/output error"},
                                    {EROFS, "Read-only file system"}}) {
    for (const std::size_t room : {0u, 100u}) {
      Folder::Outside outside;
      std::size_t left = room;
      outside.write = [&, error = error](int fd, const void* from, std::size_t size) -> ssize_t {
        if (left == 0) return errno = error, -1;
        const ssize_t n = ::write(fd, from, std::min(size, left));
        left -= static_cast<std::size_t>(n);
        return n;
      };
      const auto folder = opened(at / "kerf", Access::own, outside);
      CHECK(publish(*folder, 1) == text);
      CHECK(files_in(at / "kerf").empty());
      CHECK(folder->read(digest_of(1)).found == Found::nothing);
    }
  }
  // In small pieces, and interrupted.
  Folder::Outside outside;
  int calls = 0;
  outside.write = [&](int fd, const void* from, std::size_t size) -> ssize_t {
    if (++calls % 3 == 0) return errno = EINTR, -1;
    return ::write(fd, from, std::min<std::size_t>(size, 7));
  };
  const auto folder = opened(at / "kerf", Access::own, outside);
  CHECK(publish(*folder, 1) == "");
  CHECK(folder->read(digest_of(1)).found == Found::entry);
}

TEST_CASE("cache folder: what stands where an entry is to be written is not followed") {
  const NewFolder at;
  const auto folder = opened(at / "kerf");
  fs::create_directories(file_of(at / "kerf", 1).parent_path());
  fs::permissions(file_of(at / "kerf", 1).parent_path(), fs::perms::owner_all);
  std::ofstream(at / "victim") << "precious";
  fs::create_symlink(at / "victim", file_of(at / "kerf", 1));
  publish(*folder, 1);
  CHECK(fs::file_size(at / "victim") == 8);
  CHECK(folder->read(digest_of(1)).found == Found::damaged);
  publish(*folder, 1);
  CHECK(folder->read(digest_of(1)).found == Found::entry);

  // Folders within are looked at like the whole.
  const fs::path inner = file_of(at / "kerf", 1).parent_path();
  fs::permissions(inner, fs::perms::all);
  CHECK(folder->read(digest_of(1)).found == Found::nothing);
  CHECK(publish(*folder, 1) != "");
  fs::remove_all(inner);
  fs::create_directory(at / "elsewhere");
  fs::create_directory_symlink(at / "elsewhere", inner);
  CHECK(publish(*folder, 1) != "");
  CHECK(fs::is_empty(at / "elsewhere"));
}

TEST_CASE("cache folder: what stands where locks are to be is not waited for and not followed") {
  const NewFolder at;
  std::ofstream(at / "victim") << "precious";
  std::vector<std::function<void(const fs::path&)>> plants = {
      [&](const fs::path& f) { fs::create_symlink(at / "victim", f); },
      [&](const fs::path& f) { fs::create_symlink("/dev/zero", f); },
      [&](const fs::path& f) { REQUIRE(mkfifo(f.c_str(), 0600) == 0); },
      [&](const fs::path& f) { fs::create_directory(f); },
      [&](const fs::path& f) { std::ofstream(f).close(), fs::permissions(f, fs::perms::all); },
  };
  if (is_root())
    plants.push_back([&](const fs::path& f) {
      if (mknod(f.c_str(), S_IFCHR | 0600, makedev(5, 0)) != 0) std::ofstream(f).close();
    });
  for (std::size_t i = 0; i < plants.size(); ++i) {
    const fs::path kerf = at / fmt::format("kerf{}", i);
    const auto folder = opened(kerf);
    fs::create_directory(kerf / "lock");
    fs::permissions(kerf / "lock", fs::perms::owner_all);
    for (const char* name : {"keys", "sweep"}) plants[i](kerf / "lock" / name);
    CHECK_FALSE(folder->lock(digest_of(1), 1h));
    CHECK(publish(*folder, 1) == "");
    folder->sweep_sometimes(0);
    CHECK(folder->sweep(0).busy);
    CHECK(folder->read(digest_of(1)).found == Found::entry);
    CHECK(fs::file_size(at / "victim") == 8);
  }
}

TEST_CASE("cache folder: the folder that was opened is used, wherever its name leads by now") {
  const NewFolder at;
  const auto folder = opened(at / "kerf");
  fs::rename(at / "kerf", at / "moved");
  fs::create_directory(at / "kerf");
  CHECK(publish(*folder, 1) == "");
  CHECK(fs::is_empty(at / "kerf"));
  CHECK(fs::exists(file_of(at / "moved", 1)));
}

TEST_CASE("cache folder: what was not used for longest goes first; stamps of the future count as now") {
  const NewFolder at;
  Folder::Outside outside;
  auto now = Folder::Clock::now();
  outside.now = [&] { return now; };
  const auto folder = opened(at / "kerf", Access::own, outside);
  for (unsigned n = 0; n < 6; ++n) {
    CHECK(publish(*folder, n, 1000) == "");
    set_used(file_of(at / "kerf", n), now - std::chrono::hours(100 - n));
  }
  set_used(file_of(at / "kerf", 5), now + 87600h);
  for (const cache::EntryFile& e : folder->list())
    CHECK(Folder::Clock::time_point(std::chrono::seconds(e.used)) <= now);
  const std::uint64_t each = folder->list()[0].bytes;
  CHECK(folder->read(digest_of(0)).found == Found::entry);  // used now
  CHECK(now - used(file_of(at / "kerf", 0)) < 2s);
  CHECK(folder->read(digest_of(5)).found == Found::entry);
  CHECK(used(file_of(at / "kerf", 5)) <= now);  // set right
  const auto swept = folder->sweep(3 * each);
  CHECK(swept.entries == 3);
  CHECK(swept.bytes == 3 * each);
  CHECK(swept.left == 3 * each);
  for (const auto& [n, kept] : {std::pair{0u, true}, {1u, false}, {2u, false}, {3u, false}, {4u, true}, {5u, true}})
    CHECK(fs::exists(file_of(at / "kerf", n)) == kept);

  // A stamp is renewed once an hour, not at every use.
  now += 50min;
  const auto stamp = used(file_of(at / "kerf", 0));
  folder->read(digest_of(0));
  CHECK(used(file_of(at / "kerf", 0)) == stamp);
  now += 20min;
  folder->read(digest_of(0));
  CHECK(used(file_of(at / "kerf", 0)) > stamp);
}

TEST_CASE("cache folder: a clock that is ten years off, either way, costs nothing but the order") {
  for (const auto off : {87600h, -87600h}) {
    const NewFolder at;
    Folder::Outside outside;
    outside.now = [off] { return Folder::Clock::now() + off; };
    const auto folder = opened(at / "kerf", Access::own, outside);
    const auto right = opened(at / "kerf");
    for (unsigned n = 0; n < 4; ++n) {
      publish(n % 2 ? *folder : *right, n);
      for (const Folder* f : {folder.get(), right.get()}) CHECK(f->read(digest_of(n)).found == Found::entry);
      folder->sweep_sometimes(1 << 20);
      right->sweep_sometimes(1 << 20);
    }
    CHECK(folder->list().size() == 4);
    CHECK(right->sweep(0).entries == 4);
  }
}

TEST_CASE("cache folder: writers sweep every ten minutes, one at a time, and take what the dead left") {
  const NewFolder at;
  Folder::Outside outside;
  auto now = Folder::Clock::now();
  outside.now = [&] { return now; };
  const auto folder = opened(at / "kerf", Access::own, outside);
  publish(*folder, 1);
  const fs::path inner = file_of(at / "kerf", 1).parent_path();
  for (const char* name : {".tmp-old", ".tmp-new", ".tmp-future"}) std::ofstream(inner / name) << "x";
  set_used(inner / ".tmp-old", now - 61min);
  set_used(inner / ".tmp-future", now + 87600h);
  folder->sweep_sometimes(0);  // makes the stamp
  CHECK(fs::exists(file_of(at / "kerf", 1)));
  now += 9min;
  folder->sweep_sometimes(0);
  CHECK(fs::exists(file_of(at / "kerf", 1)));
  now += 2min;
  folder->sweep_sometimes(0);
  CHECK(!fs::exists(file_of(at / "kerf", 1)));
  CHECK(!fs::exists(inner / ".tmp-old"));
  CHECK(fs::exists(inner / ".tmp-new"));
  now += 61min;
  CHECK(folder->sweep(0).temporaries == 2);
  CHECK(files_in(at / "kerf/v1").empty());
}

TEST_CASE("cache folder: a lock is one holder's, of one key, and ends with the file") {
  const NewFolder at;
  const auto a = opened(at / "kerf"), b = opened(at / "kerf");
  {
    const cache::File held = a->lock(digest_of(1), 0ms);
    REQUIRE(held);
    CHECK_FALSE(b->lock(digest_of(1), 20ms));
    CHECK(b->lock(digest_of(2), 0ms));
  }
  CHECK(b->lock(digest_of(1), 0ms));
}

TEST_CASE("cache folder: readers during sweeps and writes see whole entries or none") {
  const NewFolder at;
  std::atomic<bool> done = false;
  std::atomic<int> damaged = 0, seen = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t)
    threads.emplace_back([&, t] {
      std::string why;
      const auto folder = Folder::open((at / "kerf").string(), Access::own, why);
      std::mt19937 random(static_cast<unsigned>(t));
      while (!done) {
        const Folder::Read r = folder->read(digest_of(random() % 4));
        if (r.found == Found::damaged) ++damaged;
        if (r.found == Found::entry) ++seen;
      }
    });
  const auto folder = opened(at / "kerf");
  for (unsigned i = 0; i < 100; ++i) {
    publish(*folder, i % 4, 20000);
    if (i % 5 == 0) folder->sweep(30000);
  }
  done = true;
  for (std::thread& t : threads) t.join();
  CHECK(damaged == 0);
  CHECK(seen > 0);
}

TEST_CASE("cache folder: a writer killed at any moment leaves whole entries, and what else it left goes") {
  const NewFolder at;
  std::mt19937 random(5);
  int temporaries = 0;
  for (int i = 0; i < 200; ++i) {
    Helper helper({"publish", (at / "kerf").string()});
    REQUIRE(helper.read_line() == "began");
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 2000));
    helper.kill();
    helper.wait();
    const auto folder = opened(at / "kerf");
    for (const cache::EntryFile& e : folder->list()) {
      if (folder->read(e.name).found != Found::entry) FAIL_CHECK(e.name);
      fs::remove(at / "kerf/v1" / e.name);
    }
    CHECK(bad_in(at / "kerf") == 0);
    for (const fs::path& f : files_in(at / "kerf/v1")) {
      CHECK(f.filename().string().starts_with(".tmp-"));
      set_used(f, Folder::Clock::now() - 2h);
      ++temporaries;
    }
    folder->sweep(1 << 30);
    CHECK(files_in(at / "kerf/v1").empty());
  }
  MESSAGE("killed between the first byte and the name: ", temporaries, " of 200");
}

}  // namespace kerf::test
