#include "runtime/tuner/worker.h"

#include <fmt/format.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <nlohmann/json.hpp>

#include "kerf/error.h"
#include "runtime/tuner/lines.h"

extern char** environ;

namespace kerf::runtime {

namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

constexpr double setup_share = 10;  // of the time of a candidate's step

std::string how_it_ended(int status) {
  if (WIFSIGNALED(status))
    return fmt::format("its process was ended by signal {} ({})", WTERMSIG(status), strsignal(WTERMSIG(status)));
  return fmt::format("its process exited with code {}", WEXITSTATUS(status));
}

}  // namespace

/// One process, from its start to its end. Answers are put where those who wait find them.
struct WorkerSubject::Process {
  Process(const std::string& program) {
    int ends[2] = {-1, -1};
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
      throw DeviceError(fmt::format("tune: no socket for a worker: {}", std::strerror(errno)));
    socket = ends[0];
    posix_spawn_file_actions_t files;
    posix_spawnattr_t how;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_adddup2(&files, ends[1], STDIN_FILENO);
    posix_spawnattr_init(&how);
    // A group of its own: Ctrl-C is this process's business.
    posix_spawnattr_setflags(&how, POSIX_SPAWN_SETPGROUP);
    std::string name = program, verb = "tune-worker";
    char* arguments[] = {name.data(), verb.data(), nullptr};
    const int error = posix_spawn(&pid, program.c_str(), &files, &how, arguments, environ);
    posix_spawnattr_destroy(&how);
    posix_spawn_file_actions_destroy(&files);
    close(ends[1]);
    if (error != 0) {
      close(socket);
      throw DeviceError(
          fmt::format("tune: {} cannot be started as a worker: {}; name the kerf command in "
                      "TuneOptions::worker, or leave it empty",
                      program, std::strerror(error)));
    }
    reader = std::thread([this] { read(); });
  }
  ~Process() {
    end();
    reader.join();
    close(socket);
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  void read() {
    LineReader lines(socket);
    while (const auto line = lines.next()) {
      const json answer = json::parse(*line, nullptr, false);
      const std::lock_guard lock(mutex);
      if (answer.is_object()) answers[answer.value("id", std::int64_t{-1})] = *line;
      arrived.notify_all();
    }
    kill(pid, SIGKILL);  // who closes the socket and goes on is of no use
    siginfo_t info;
    while (waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOWAIT) < 0 && errno == EINTR) {
    }
    // Its number is another's once it is reaped.
    const std::lock_guard lock(mutex);
    ended = true;
    int status = 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    how = how_it_ended(status);
    arrived.notify_all();
  }

  Answer ask(json question, double seconds) {
    std::unique_lock lock(mutex);
    const std::int64_t id = next++;
    question["id"] = id;
    if (!ended) write_line(socket, question.dump());
    const auto deadline =
        Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
    const bool in_time = arrived.wait_until(lock, deadline, [&] { return ended || answers.count(id) > 0; });
    Answer answer;
    if (const auto at = answers.find(id); at != answers.end()) {
      answer.line = std::move(at->second);
      answers.erase(at);
    } else if (in_time) {
      answer.ended = true;
      answer.how = how;
    } else {
      answer.timed_out = true;
      kill(pid, SIGKILL);
    }
    return answer;
  }

  void end() {
    const std::lock_guard lock(mutex);
    if (!ended) kill(pid, SIGKILL);
  }

  int socket = -1;
  pid_t pid = -1;
  std::thread reader;
  std::mutex mutex;  // guards what follows
  std::condition_variable arrived;
  std::map<std::int64_t, std::string> answers;
  std::int64_t next = 0;
  bool ended = false;
  std::string how;
};

WorkerSubject::WorkerSubject(std::string program, std::string setup, double seconds, bool overlaps)
    : program_(std::move(program)), setup_(std::move(setup)), seconds_(seconds), overlaps_(overlaps) {}
WorkerSubject::~WorkerSubject() = default;

std::shared_ptr<WorkerSubject::Process> WorkerSubject::process() {
  const std::lock_guard lock(mutex_);
  if (process_) {
    const std::lock_guard inner(process_->mutex);
    if (!process_->ended) return process_;
  }
  process_ = nullptr;
  auto started = std::make_shared<Process>(program_);
  const Answer answer = started->ask({{"do", "setup"}, {"setup", setup_}}, setup_share * seconds_);
  if (answer.timed_out || answer.ended)
    throw DeviceError(
        fmt::format("tune: the worker {} did not get ready: {}", program_,
                    answer.ended ? answer.how : fmt::format("it took more than {} s", setup_share * seconds_)));
  const json said = json::parse(answer.line, nullptr, false);
  if (said.is_object() && said.contains("error")) {
    const auto text = said.value("error", std::string());
    const auto kind = said.value("kind", std::string());
    if (kind == "usage") throw UsageError(text);
    if (kind == "device") throw DeviceError(text);
    throw InternalError(text);
  }
  process_ = std::move(started);
  return process_;
}

void WorkerSubject::start() { process(); }

WorkerSubject::Answer WorkerSubject::ask_once(const std::string& what, const TunePoint& point) {
  return process()->ask({{"do", what}, {"point", point}}, seconds_);
}

WorkerSubject::Answer WorkerSubject::ask(const std::string& what, const TunePoint& point) {
  Answer answer = ask_once(what, point);
  if (!answer.ended) return answer;
  // Another candidate may have ended the process: ask again with nobody else in it.
  const std::lock_guard lock(alone_);
  return ask_once(what, point);
}

std::string WorkerSubject::require(const Answer& answer) const {
  if (answer.timed_out)
    throw TuneFailure(WisdomStatus::timeout, fmt::format("took more than {} s and was ended", seconds_));
  if (answer.ended) throw TuneFailure(WisdomStatus::fault, answer.how);
  const json said = json::parse(answer.line, nullptr, false);
  if (said.is_object() && said.contains("status"))
    throw TuneFailure(static_cast<WisdomStatus>(said.value("status", 3)), said.value("reason", std::string()));
  return answer.line;
}

std::optional<KernelResources> WorkerSubject::compile(const TunePoint& point) {
  const json said = json::parse(require(ask("compile", point)));
  if (!said.contains("resources")) return {};
  const json& r = said.at("resources");
  return KernelResources{.registers = r.value("registers", 0),
                         .threads = r.value("threads", 0),
                         .blocks = r.value("blocks", 0),
                         .shared_bytes = r.value("shared_bytes", std::int64_t{0}),
                         .local_bytes = r.value("local_bytes", std::int64_t{0})};
}

std::string WorkerSubject::check(const TunePoint& point) {
  return json::parse(require(ask("check", point))).value("wrong", std::string());
}

double WorkerSubject::run(const TunePoint& point) { return json::parse(require(ask("run", point))).value("ms", 0.0); }

void WorkerSubject::forget(const TunePoint& point) {
  std::shared_ptr<Process> process;
  {
    const std::lock_guard lock(mutex_);
    process = process_;
  }
  if (process) process->ask({{"do", "forget"}, {"point", point}}, seconds_);
}

}  // namespace kerf::runtime
