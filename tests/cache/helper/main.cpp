// A process of its own for tests of the cache: what it does is its first argument.
//   key                     the digest of a program's key
//   publish FOLDER          writes entries until it is killed; a line when the first is there
//   keys                    those of the programs of a plan, each with its name
//   compile FOLDER N        compiles programs 1 to N; those that it had to lower, then its warnings
//   start FOLDER            a plan of many programs, made ready; how many were compiled, how many came from the folder,
//                           and the milliseconds that it took
//   hold FOLDER N           takes program N's turn to compile and keeps it until it is killed; a line when it has it
//   limited FOLDER N BYTES  as compile, with files of at most BYTES
//   files FOLDER N COUNT    as compile, with COUNT files open at most
//   as USER FOLDER N        as compile, as another user
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "kerf/loss.h"
#include "lib/passes/passes.h"
#include "runtime/cache/folder.h"
#include "runtime/cache/key.h"
#include "runtime/loss_programs.h"
#include "tests/cache/scale.h"

namespace {

using namespace kerf;

int publish(const std::string& path) {
  std::string why;
  const auto folder = cache::Folder::open(path, cache::Access::own, why);
  if (!folder) return 1;
  const cache::Key key = cache::key_of(test::scale(1).ir(), Target::host(), {});
  for (unsigned i = 0;; ++i) {
    codegen::Digest digest = cache::digest(key);
    std::memcpy(digest.data() + 1, &i, sizeof i);
    cache::Entry entry{digest, {{cache::SectionType::object, std::vector<std::byte>(20000 + i % 7, std::byte{42})}}};
    if (!folder->publish(digest, cache::serialize(entry)).empty()) return 1;
    if (i == 0) std::puts("began"), std::fflush(stdout);
  }
}

int compile(const std::string& path, int count) {
  const auto cache = test::cache_in(path);
  std::string lowered;
  for (int i = 1; i <= count; ++i) {
    const std::int64_t before = cache->status().compiled;
    if (!test::scales(i, cache)) return 1;
    if (cache->status().compiled > before) lowered.append(lowered.empty() ? "" : " ").append(std::to_string(i));
  }
  std::puts(lowered.c_str());
  for (const std::string& w : cache->status().warnings) std::puts(w.c_str());
  return 0;
}

int start(const std::string& path) {
  const auto begin = std::chrono::steady_clock::now();
  const auto cache = test::cache_in(path);
  Plan plan({.hidden = 64, .vocabulary = 20000, .dtype = bf16}, {.cache = cache});
  plan.prepare();
  const std::chrono::duration<double, std::milli> ms = std::chrono::steady_clock::now() - begin;
  const CacheStatus s = cache->status();
  std::printf("%lld %lld %.1f\n", static_cast<long long>(s.compiled), static_cast<long long>(s.from_folders),
              ms.count());
  return 0;
}

int hold(const std::string& path, int number) {
  std::string why;
  const auto folder = cache::Folder::open(path, cache::Access::own, why);
  if (!folder) return 1;
  const cache::File turn = folder->lock(cache::digest(test::key_of_scale(number)), std::chrono::seconds(1));
  if (!turn) return 1;
  std::puts("holds"), std::fflush(stdout);
  for (;;) pause();
}

int keys() {
  const runtime::LossPrograms programs({1000, 64, bf16}, nullptr);
  for (runtime::LossProgram which : programs.all()) {
    const ir::Program program = passes::pipeline(programs.record(which).ir(), true);
    const cache::Key key = cache::key_of(program, Target::host(), programs.schedule(which));
    std::printf("%s %s\n", program.name.c_str(), codegen::to_hex(cache::digest(key)).c_str());
  }
  return 0;
}

/// compile within a limit, which ends before the process does: sanitizers open files then.
int limited(decltype(RLIMIT_NOFILE) what, const char* most, const std::string& folder, int count) {
  rlimit before{};
  if (getrlimit(what, &before) != 0) return 1;
  const rlimit now{static_cast<rlim_t>(std::atoi(most)), before.rlim_max};
  if (setrlimit(what, &now) != 0) return 1;
  const int code = compile(folder, count);
  return setrlimit(what, &before) == 0 ? code : 1;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string verb = argc > 1 ? argv[1] : "", folder = argc > 2 ? argv[2] : "";
  if (verb == "key") {
    std::puts(codegen::to_hex(cache::digest(cache::key_of(test::scale(2).ir(), Target::host(), {}))).c_str());
    return 0;
  }
  if (verb == "start") return start(folder);
  if (verb == "keys") return keys();
  if (verb == "hold" && argc > 3) return hold(folder, std::atoi(argv[3]));
  if (verb == "publish") return publish(folder);
  if (verb == "compile" && argc > 3) return compile(folder, std::atoi(argv[3]));
  if (verb == "limited" && argc > 4) {
    std::signal(SIGXFSZ, SIG_IGN);
    return limited(RLIMIT_FSIZE, argv[4], folder, std::atoi(argv[3]));
  }
  if (verb == "files" && argc > 4) return limited(RLIMIT_NOFILE, argv[4], folder, std::atoi(argv[3]));
  if (verb == "as" && argc > 4) {
    const auto user = static_cast<uid_t>(std::atoi(argv[2]));
    if (setgid(user) != 0 || setuid(user) != 0) return 1;
    return compile(argv[3], std::atoi(argv[4]));
  }
  return 2;
}
