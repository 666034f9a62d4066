// CodeCache as plans and kernels use it: what is compiled, what is not, and what is said when a folder fails.
#include "kerf/cache.h"

#include <fmt/format.h>
#include <sys/mount.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <sstream>
#include <thread>

#include "codegen/cpu/jit.h"
#include "kerf/loss.h"
#include "lib/passes/passes.h"
#include "runtime/cache/cache.h"
#include "tests/cache/support.h"
#include "tests/cuda/fake.h"
#include "tests/loss/loss_case.h"

namespace kerf::test {

namespace {

using namespace std::chrono_literals;

/// A file system of 16 KiB, where this process may mount one.
class Mount {
 public:
  explicit Mount(const fs::path& at) : at_(at) {
    fs::create_directory(at_);
    there_ = mount("none", at_.c_str(), "tmpfs", MS_NOSUID, "size=16k,mode=700") == 0;
  }
  ~Mount() {
    if (there_) umount2(at_.c_str(), MNT_DETACH);
  }
  Mount(const Mount&) = delete;
  Mount& operator=(const Mount&) = delete;
  bool there() const { return there_; }
  void make_read_only() const { REQUIRE(mount("none", at_.c_str(), nullptr, MS_REMOUNT | MS_RDONLY, nullptr) == 0); }

 private:
  fs::path at_;
  bool there_ = false;
};

std::string only_warning(const CodeCache& cache) {
  const auto w = cache.status().warnings;
  REQUIRE(w.size() == 1);
  return w[0];
}

/// The one entry of scale(number) in a folder.
fs::path file_of(const fs::path& folder, int number) {
  return folder / "v1" / cache::file_name(cache::digest(key_of_scale(number)));
}
bool holds(const fs::path& folder, int number) { return fs::exists(file_of(folder, number)); }

}  // namespace

TEST_CASE("cache: the second time code comes from memory, in the next process from the folder") {
  const NewFolder at;
  const auto first = cache_in(at / "kerf");
  CHECK(scales(2, first));
  CHECK(scales(2, first));
  CHECK(scales(3, first));
  CHECK(first->status().compiled == 2);
  CHECK(first->status().from_memory == 1);
  CHECK(first->status().from_folders == 0);
  CHECK(first->status().warnings.empty());
  const auto second = cache_in(at / "kerf");
  CHECK(scales(2, second));
  CHECK(scales(3, second));
  CHECK(second->status().compiled == 0);
  CHECK(second->status().from_folders == 2);
  CHECK(second->status().folder == at / "kerf");
  CHECK(run_helper("compile", {at / "kerf", "4"}).out == "1 4\n");
}

TEST_CASE("cache: without a folder code is kept in memory") {
  const auto cache = no_folder();
  CHECK(scales(2, cache));
  CHECK(scales(2, cache));
  CHECK(cache->status().compiled == 1);
  CHECK(cache->status().folder.empty());
  CHECK(cache->status().warnings.empty());
  CHECK(scales(2, nullptr));
}

TEST_CASE("cache: where it lies is told by the environment") {
  const Variable off("KERF_CACHE", ""), named("KERF_CACHE_DIR", ""), xdg("XDG_CACHE_HOME", ""), home("HOME", "/h"),
      layers("KERF_CACHE_RO", ":/a::/b/c:");
  CHECK(CacheOptions::from_environment().folder == "/h/.cache/kerf");
  CHECK(CacheOptions::from_environment().read_only == std::vector<std::string>{"/a", "/b/c"});
  CHECK(CacheOptions::from_environment().limit_bytes == std::uint64_t{2} << 30);
  const Variable xdg_too("XDG_CACHE_HOME", "/x");
  CHECK(CacheOptions::from_environment().folder == "/x/kerf");
  const Variable named_too("KERF_CACHE_DIR", "/k");
  CHECK(CacheOptions::from_environment().folder == "/k");
  const Variable switched_off("KERF_CACHE", "off");
  CHECK(CacheOptions::from_environment().folder.empty());
  CHECK(CacheOptions::from_environment().read_only.empty());
}

TEST_CASE("cache: with no HOME there is none, and no complaint") {
  const Variable on("KERF_CACHE", ""), named("KERF_CACHE_DIR", ""), xdg("XDG_CACHE_HOME", ""), home("HOME", "");
  const auto cache = std::make_shared<CodeCache>();
  CHECK(scales(2, cache));
  CHECK(cache->status().warnings.empty());
  CHECK(cache->status().folder.empty());
}

TEST_CASE("cache: a folder that cannot be used is said once, and everything works") {
  const NewFolder at;
  fs::create_directory(at / "open");
  fs::permissions(at / "open", fs::perms::all);
  std::ofstream(at / "file") << "x";
  fs::create_directory_symlink(at / "open", at / "link");
  for (const char* path : {"open", "file", "link", "file/below"}) {
    const auto cache = cache_in(at / path);
    CHECK(scales(2, cache));
    CHECK(scales(3, cache));
    CHECK(scales(2, cache));
    CHECK(only_warning(*cache).starts_with("code is kept in memory alone: " + (at / path).string()));
    CHECK(cache->status().compiled == 2);
  }
  CHECK(fs::is_empty(at / "open"));
}

TEST_CASE("cache: layers are looked into after the folder and never written") {
  const NewFolder at;
  scales(2, cache_in(at / "site"));
  scales(3, cache_in(at / "site"));
  const std::size_t files = files_in(at / "site").size();
  const auto cache = cache_in(at / "kerf", {at / "absent", at / "site"});
  CHECK(scales(2, cache));
  CHECK(scales(4, cache));
  CHECK(cache->status().compiled == 1);
  CHECK(cache->status().from_folders == 1);
  CHECK(cache->status().read_only == std::vector<std::string>{at / "site"});
  CHECK(only_warning(*cache).starts_with("not looked into: " + (at / "absent").string()));
  CHECK(files_in(at / "site").size() == files);

  fs::resize_file(file_of(at / "site", 3), 99);
  const auto other = cache_in("", {at / "site"});
  CHECK(scales(3, other));
  CHECK(only_warning(*other) == fmt::format("{}: the entry of scale for {} is damaged, and is not used",
                                            (at / "site").string(), Target::host().level()));
  CHECK(files_in(at / "site").size() == files);
}

TEST_CASE("cache: a damaged entry is compiled anew and replaced") {
  const NewFolder at;
  scales(2, cache_in(at / "kerf"));
  const auto good = bytes_of(file_of(at / "kerf", 2));
  fs::resize_file(file_of(at / "kerf", 2), good.size() / 2);
  const auto cache = cache_in(at / "kerf");
  CHECK(scales(2, cache));
  CHECK(cache->status().compiled == 1);
  CHECK(only_warning(*cache) == fmt::format("{}: the entry of scale for {} is damaged, and was moved to bad/",
                                            (at / "kerf").string(), Target::host().level()));
  CHECK(bytes_of(file_of(at / "kerf", 2)) == good);
}

TEST_CASE("cache: an entry that is whole and not for this machine is compiled anew") {
  const NewFolder at;
  scales(2, cache_in(at / "kerf"));
  const cache::Key key = key_of_scale(2);
  codegen::cpu::Object foreign = codegen::cpu::compile(passes::pipeline(scale(2).ir(), true), Target::aarch64(), {});
  for (const cache::Entry& entry : {cache::to_entry(key, foreign),
                                    cache::to_entry(key, codegen::cpu::Object{std::vector<std::byte>(9), "scale", 0}),
                                    cache::to_entry(key, codegen::nvptx::Code{"ptx", "scale", 128, 0, 1, {}, {}})}) {
    write_bytes(file_of(at / "kerf", 2), cache::serialize(entry));
    const auto cache = cache_in(at / "kerf");
    CHECK(scales(2, cache));
    CHECK(cache->status().compiled == 1);
    CHECK(only_warning(*cache).ends_with("is damaged, and was moved to bad/"));
  }
  const auto cache = cache_in(at / "kerf");
  CHECK(scales(2, cache));
  CHECK(cache->status().compiled == 0);
}

TEST_CASE("cache: entries of two versions lie side by side") {
  const NewFolder at;
  scales(2, cache_in(at / "kerf"));
  cache::Key other = key_of_scale(2);
  other.kerf = "0.0.9";
  std::string why;
  const auto folder = cache::Folder::open(at / "kerf", cache::Access::own, why);
  CHECK(folder->publish(cache::digest(other),
                        cache::serialize(cache::to_entry(
                            other, codegen::cpu::Object{std::vector<std::byte>(9), "scale", 0}))) == "");
  const auto cache = cache_in(at / "kerf");
  CHECK(scales(2, cache));
  CHECK(cache->status().compiled == 0);
  CHECK(folder->list().size() == 2);
}

TEST_CASE("cache: a folder or disk that cannot be written is said once") {
  const NewFolder at;
  // Files of at most 1000 bytes, which every entry passes.
  const Helper::End end = run_helper("limited", {at / "kerf", "3", "1000"});
  CHECK(end.code == 0);
  CHECK(end.out == fmt::format("1 2 3\n{}: cannot be written, new code is kept in memory alone: File too large\n",
                               (at / "kerf").string()));
  for (const fs::path& f : files_in(at / "kerf/v1")) FAIL_CHECK(f.string());

  const Mount disk(at / "mounted");
  if (!disk.there()) {
    MESSAGE("no file system may be mounted here: a full and a read-only one are left out");
    return;
  }
  {
    const auto full = cache_in(at / "mounted/kerf");
    for (int n = 2; n < 10; ++n) CHECK(scales(n, full));
    CHECK(only_warning(*full).ends_with("No space left on device"));
  }
  fs::remove_all(at / "mounted/kerf");
  scales(2, cache_in(at / "mounted/kerf"));
  disk.make_read_only();
  const auto fixed = cache_in(at / "mounted/kerf");
  CHECK(scales(2, fixed));
  CHECK(fixed->status().from_folders == 1);
  CHECK(scales(3, fixed));
  CHECK(scales(4, fixed));
  CHECK(only_warning(*fixed).ends_with("Read-only file system"));
}

TEST_CASE("cache: 32 threads that ask for the same at once have it compiled once") {
  for (const bool folder : {false, true}) {
    const NewFolder at;
    const auto cache = folder ? cache_in(at / "kerf") : no_folder();
    std::atomic<int> right = 0;
    std::vector<std::thread> threads;
    for (int t = 0; t < 32; ++t) threads.emplace_back([&, t] { right += scales(2 + t % 2, cache); });
    for (std::thread& t : threads) t.join();
    CHECK(right == 32);
    CHECK(cache->status().compiled == 2);
    CHECK(cache->status().from_memory == 30);
  }
}

TEST_CASE("cache: 32 threads on a cold plan compile each program once, and a second plan none") {
  const NewFolder at;
  const auto cache = cache_in(at / "kerf");
  const PlanDesc desc{.hidden = 24, .vocabulary = 300};
  Plan plan(desc, {.cache = cache});
  std::vector<std::thread> threads;
  for (int t = 0; t < 32; ++t) threads.emplace_back([&] { plan.prepare(); });
  for (std::thread& t : threads) t.join();
  const auto programs = static_cast<std::int64_t>(plan.program_names().size());
  CHECK(cache->status().compiled == programs);
  Plan(desc, {.cache = cache}).prepare();
  CHECK(cache->status().compiled == programs);
  const auto next = cache_in(at / "kerf");
  Plan again(desc, {.cache = next});
  CHECK(again.workspace_bytes(64, true) == plan.workspace_bytes(64, true));
  again.prepare();
  CHECK(next->status().compiled == 0);
  CHECK(next->status().from_folders == programs);
}

TEST_CASE("cache: code from the folder computes the same bits") {
  const NewFolder at;
  for (DType dtype : {f32, bf16}) {
    LossCase x({40, 300, 24}, {.dtype = dtype});
    x.run(*std::make_unique<Plan>(x.desc, Shared{.cache = cache_in(at / "kerf")}));
    const auto bits = x.bits();
    const auto cache = cache_in(at / "kerf");
    Plan plan(x.desc, {.cache = cache});
    x.run(plan);
    x.check();
    CHECK(x.bits() == bits);
    CHECK(cache->status().compiled == 0);
  }
}

TEST_CASE("cache: a process that finds a whole plan in the folder compiles nothing, and is ready in no time") {
  const NewFolder at;
  struct Start {
    int compiled = -1, from_folders = -1;
    double ms = 0;
  };
  const auto start = [&] {
    Start s;
    std::istringstream(run_helper("start", {at / "kerf"}).out) >> s.compiled >> s.from_folders >> s.ms;
    return s;
  };
  const Start cold = start();
  CHECK(cold.compiled > 20);
  CHECK(cold.from_folders == 0);
  double least = cold.ms;
  for (int i = 0; i < 3; ++i) {
    const Start warm = start();
    CHECK(warm.compiled == 0);
    CHECK(warm.from_folders == cold.compiled);
    least = std::min(least, warm.ms);
  }
  CHECK(least < cold.ms / 4);  // alone on a machine it is a sixtieth, less with sanitizers
}

TEST_CASE("cache: 16 processes on one empty folder lower each program at most twice between them") {
  const NewFolder at;
  constexpr int programs = 32;
  std::vector<std::unique_ptr<Helper>> helpers;
  for (int i = 0; i < 16; ++i)
    helpers.push_back(
        std::make_unique<Helper>(std::vector<std::string>{"compile", at / "kerf", fmt::format("{}", programs)}));
  std::map<int, int> times;  // by program
  for (const auto& helper : helpers) {
    const Helper::End end = helper->wait();
    CHECK(end.code == 0);
    CHECK(end.out.find('\n') == end.out.size() - 1);  // no warnings
    std::istringstream lowered(end.out);
    for (int program; lowered >> program;) ++times[program];
  }
  CHECK(times.size() == programs);
  for (const auto& [program, n] : times) {
    CAPTURE(program);
    CHECK(n <= 2);
  }
  for (const fs::path& f : files_in(at / "kerf/v1")) CHECK(f.extension() == ".kfc");
  CHECK(files_in(at / "kerf/v1").size() == programs);
}

TEST_CASE("cache: another process that hangs while it compiles is waited for a while, and then no longer") {
  const NewFolder at;
  fs::create_directory(at / "kerf");
  fs::permissions(at / "kerf", fs::perms::owner_all);
  Helper other({"hold", at / "kerf", "2"});
  REQUIRE(other.read_line() == "holds");
  const auto cache = cache_in(at / "kerf");
  cache->impl().wait_at_most(300ms);
  const auto seconds_for = [&](int number) {
    const auto start = std::chrono::steady_clock::now();
    CHECK(scales(number, cache));
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  const double waited = seconds_for(2);
  CHECK(waited >= 0.25);
  CHECK(waited < 20);
  CHECK(cache->status().compiled == 1);
  CHECK(cache->status().warnings.empty());
  CHECK(holds(at / "kerf", 2));
  CHECK(scales(2, cache_in(at / "kerf")));  // what is there needs no turn

  // One that dies is waited for no longer than it lives.
  Helper dying({"hold", at / "kerf", "3"});
  REQUIRE(dying.read_line() == "holds");
  std::thread end([&] {
    std::this_thread::sleep_for(100ms);
    dying.kill();
  });
  cache->impl().wait_at_most(60s);
  CHECK(seconds_for(3) < 30);
  end.join();
  CHECK(seconds_for(4) < 30);  // another key
}

TEST_CASE("cache: code for other levels and architectures is none for this one") {
  const NewFolder at;
  const auto compiled_for = [&](const Target& target) {
    const auto cache = cache_in(at / "kerf");
    codegen::cpu::Object object;
    const ir::Program program = passes::pipeline(scale(2).ir(), true);
    const cache::Key key = cache::key_of(program, target, {});
    const auto made = cache->impl().get<codegen::cpu::Object>(
        key, "",
        [](const cache::Entry& e) { return std::make_shared<const codegen::cpu::Object>(*cache::to_object(e)); },
        [&](std::optional<cache::Entry>& entry) {
          const auto o = std::make_shared<const codegen::cpu::Object>(codegen::cpu::compile(program, target, {}));
          entry = cache::to_entry(key, *o);
          return o;
        });
    return cache->status().compiled;
  };
  for (const char* level : {"sse2", "avx2", "avx512", "avx512bf16"}) {
    CHECK(compiled_for(Target::x86(level)) == 1);
    CHECK(compiled_for(Target::x86(level)) == 0);
  }
  CHECK(compiled_for(Target::aarch64()) == 1);
  Target tuned = Target::x86("avx2");
  tuned.cpu = "znver3";
  CHECK(compiled_for(tuned) == 1);
}

TEST_CASE("cache: few open files, or a folder of this user that may not be written, cost warnings alone") {
  const NewFolder at;
  for (int number : {1, 2}) CHECK(scales(number, cache_in(at / "kerf")));
  for (int most = 3; most < 16; ++most) {
    const Helper::End end = run_helper("files", {at / "kerf", "3", fmt::format("{}", most)});
    CAPTURE(most);
    CAPTURE(end.out);
    CHECK(end.code == 0);
    CHECK((holds(at / "kerf", 1) && holds(at / "kerf", 2)));
    CHECK(!fs::exists(at / "kerf/bad"));
    fs::remove(file_of(at / "kerf", 3));
  }
  if (geteuid() != 0) return;
  REQUIRE(chown(at.string().c_str(), 4242, 4242) == 0);
  const auto as_user = [&] { return run_helper("as", {"4242", at / "user", "2"}); };
  CHECK(as_user().out == "1 2\n");
  CHECK(as_user().out == "\n");
  for (const fs::path& f : files_in(at / "user/v1")) fs::remove(f);
  for (const auto& e : fs::directory_iterator(at / "user/v1"))
    fs::permissions(e.path(), fs::perms::owner_read | fs::perms::owner_exec);
  const Helper::End end = as_user();
  CHECK(end.code == 0);
  CHECK(end.out == fmt::format("1 2\n{}: cannot be written, new code is kept in memory alone: Permission denied\n",
                               (at / "user").string()));
  REQUIRE(chown((at / "user").c_str(), 0, 0) == 0);
  fs::permissions(at / "user", fs::perms::owner_all | fs::perms::others_read | fs::perms::others_exec);
  CHECK(as_user().out ==
        fmt::format("1 2\ncode is kept in memory alone: {}: belongs to user 0, this process is of user "
                    "4242\n",
                    (at / "user").string()));
}

}  // namespace kerf::test
