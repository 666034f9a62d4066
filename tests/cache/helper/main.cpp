// A process of its own for tests of the cache: what it does is its first argument.
//   key                     the digest of a program's key
//   publish FOLDER          writes entries until it is killed; a line when the first is there
//   compile FOLDER N        compiles programs 1 to N; how many of them it had to lower, then its warnings
//   limited FOLDER N BYTES  the same with files of at most BYTES
#include <sys/resource.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "runtime/cache/folder.h"
#include "runtime/cache/key.h"
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
  for (int i = 1; i <= count; ++i)
    if (!test::scales(i, cache)) return 1;
  const CacheStatus status = cache->status();
  std::printf("%lld\n", static_cast<long long>(status.compiled));
  for (const std::string& w : status.warnings) std::puts(w.c_str());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string verb = argc > 1 ? argv[1] : "", folder = argc > 2 ? argv[2] : "";
  if (verb == "key") {
    std::puts(codegen::to_hex(cache::digest(cache::key_of(test::scale(2).ir(), Target::host(), {}))).c_str());
    return 0;
  }
  if (verb == "publish") return publish(folder);
  if (verb == "compile" && argc > 3) return compile(folder, std::atoi(argv[3]));
  if (verb == "limited" && argc > 4) {
    const rlimit limit{static_cast<rlim_t>(std::atoi(argv[4])), static_cast<rlim_t>(std::atoi(argv[4]))};
    std::signal(SIGXFSZ, SIG_IGN);
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0) return 1;
    return compile(folder, std::atoi(argv[3]));
  }
  return 2;
}
