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
      // Or the next question would go to who cannot answer it. What the kernel does not let go of is not waited for.
      arrived.wait_for(lock, std::chrono::seconds(10), [&] { return ended; });
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

/// Processes one after the other, each told the same.
class WorkerSubject::Worker {
 public:
  Worker(std::string program, std::string setup, double seconds)
      : program_(std::move(program)), setup_(std::move(setup)), seconds_(seconds) {}

  /// Sends a step to the process, which is started where there is none. Throws what starting throws.
  Answer ask(const std::string& what, const TunePoint& point) {
    return process()->ask({{"do", what}, {"point", point}}, seconds_);
  }
  Answer ask_each(const std::vector<TunePoint>& points) {
    return process()->ask({{"do", "run_each"}, {"points", points}}, seconds_);
  }
  /// Nothing where there is no process.
  std::optional<Answer> ask_if_there(const std::string& what, const TunePoint& point) {
    std::shared_ptr<Process> process;
    {
      const std::lock_guard lock(mutex_);
      process = process_;
    }
    if (!process) return {};
    return process->ask({{"do", what}, {"point", point}}, seconds_);
  }
  void start() { process(); }
  void begin(const std::string& part) {
    const std::lock_guard lock(mutex_);
    if (part == part_) return;
    part_ = part;
    if (!process_) return;
    const Answer answer = process_->ask({{"do", "begin"}, {"part", part_}}, setup_share * seconds_);
    if (!answer.ended && !answer.timed_out) require_done(answer);  // else the next step starts another, which is told
  }
  /// For good. Whoever is just starting it is waited for.
  void end() {
    const std::lock_guard lock(mutex_);
    ended_ = true;
    if (process_) process_->end();
  }

 private:
  std::shared_ptr<Process> process() {
    const std::lock_guard lock(mutex_);
    if (process_) {
      const std::lock_guard inner(process_->mutex);
      if (!process_->ended) return process_;
    }
    if (ended_) throw TuneEnd("the search has ended");
    if (failed_) std::rethrow_exception(failed_);
    const bool again = process_ != nullptr;
    process_ = nullptr;
    try {
      auto started = std::make_shared<Process>(program_);
      require_done(started->ask({{"do", "setup"}, {"setup", setup_}}, setup_share * seconds_));
      if (!part_.empty()) require_done(started->ask({{"do", "begin"}, {"part", part_}}, setup_share * seconds_));
      process_ = std::move(started);
    } catch (const Error& e) {
      failed_ = again ? std::make_exception_ptr(TuneEnd(e.what())) : std::current_exception();
      std::rethrow_exception(failed_);
    }
    return process_;
  }
  /// Throws what the other side told.
  void require_done(const Answer& answer) const {
    if (answer.timed_out || answer.ended)
      throw DeviceError(
          fmt::format("tune: the worker {} did not get ready: {}", program_,
                      answer.ended ? answer.how : fmt::format("it took more than {} s", setup_share * seconds_)));
    const json said = json::parse(answer.line, nullptr, false);
    if (!said.is_object() || !said.contains("error")) return;
    const auto text = said.value("error", std::string());
    const auto kind = said.value("kind", std::string());
    if (kind == "usage") throw UsageError(text);
    if (kind == "device") throw DeviceError(text);
    throw InternalError(text);
  }

  const std::string program_, setup_;
  const double seconds_;
  std::mutex mutex_;  // guards what follows
  std::string part_;
  std::shared_ptr<Process> process_;
  std::exception_ptr failed_;
  bool ended_ = false;
};

WorkerSubject::WorkerSubject(const std::string& program, const std::string& setup, double seconds,
                             const CompilerProcesses& compilers)
    : seconds_(seconds), measuring_(std::make_unique<Worker>(program, setup, seconds)) {
  for (int i = 0; i < compilers.count; ++i) {
    compilers_.push_back(std::make_unique<Worker>(program, compilers.setup, seconds));
    idle_.push_back(compilers_.back().get());
  }
}

WorkerSubject::~WorkerSubject() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
    returned_.notify_all();
  }
  // All at once: a GPU's contexts take their time to go.
  measuring_->end();
  for (const auto& c : compilers_) c->end();
}

void WorkerSubject::begin(const std::string& part) {
  Coming unused;  // who compiles it takes the lock
  {
    const std::lock_guard lock(mutex_);
    part_ = part;
    ++begun_;
    returned_.notify_all();
    unused = std::exchange(coming_, std::exchange(expected_, {}));
  }
  measuring_->begin(part);
}

void WorkerSubject::expect(const std::string& part, const std::vector<TunePoint>& points) {
  if (compilers_.empty()) return;
  const std::lock_guard lock(mutex_);
  for (const TunePoint& p : points)
    expected_[p] = std::async(std::launch::async, [this, part, p, parts = begun_ + 1] {
                     return compile_beside(part, p, parts);
                   }).share();
}

void WorkerSubject::wait_ready() { measuring_->start(); }

WorkerSubject::Answer WorkerSubject::ask(const std::string& what, const TunePoint& point) {
  {
    const std::shared_lock lock(alone_);
    Answer answer = measuring_->ask(what, point);
    if (!answer.ended) return answer;
  }
  // Another candidate may have ended the process: ask again with nobody else in it.
  const std::lock_guard lock(alone_);
  return measuring_->ask(what, point);
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
  std::shared_future<std::optional<Answer>> coming;
  std::string part;
  int parts = 0;
  {
    const std::lock_guard lock(mutex_);
    part = part_, parts = begun_;
    if (const auto at = coming_.find(point); at != coming_.end()) coming = at->second;
  }
  const std::optional<Answer> answer = coming.valid() ? coming.get() : compile_beside(part, point, parts);
  return resources(answer ? *answer : ask("compile", point));
}

std::optional<WorkerSubject::Answer> WorkerSubject::compile_beside(const std::string& part, const TunePoint& point,
                                                                   int parts) {
  Worker* worker = nullptr;
  {
    std::unique_lock lock(mutex_);
    const auto late = [&] { return ending_ || begun_ > parts; };
    returned_.wait(lock, [&] { return late() || !idle_.empty() || lost_ == compilers_.size(); });
    if (late() || idle_.empty()) return {};
    worker = idle_.back();
    idle_.pop_back();
  }
  std::optional<Answer> answer;
  try {
    worker->begin(part);
    answer = worker->ask("compile", point);
  } catch (const std::exception&) {  // it could not be started: what measures compiles as well
  }
  const std::lock_guard lock(mutex_);
  if (answer)
    idle_.push_back(worker);
  else
    ++lost_;
  returned_.notify_all();
  return answer;
}

std::optional<KernelResources> WorkerSubject::resources(const Answer& answer) const {
  const json said = json::parse(require(answer));
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

std::optional<std::vector<double>> WorkerSubject::run_each(const std::vector<TunePoint>& points) {
  const std::shared_lock lock(alone_);
  const Answer answer = measuring_->ask_each(points);
  if (answer.timed_out || answer.ended) return {};
  auto ms = json::parse(answer.line, nullptr, false).value("ms", std::vector<double>{});
  return ms.size() == points.size() ? std::optional(std::move(ms)) : std::nullopt;
}

void WorkerSubject::forget(const TunePoint& point) { measuring_->ask_if_there("forget", point); }

TuneSubject::Spent WorkerSubject::spent() {
  const auto answer = measuring_->ask_if_there("spent", {});
  if (!answer || answer->timed_out || answer->ended) return {};
  return json::parse(answer->line).value("spent", Spent{});
}

}  // namespace kerf::runtime
