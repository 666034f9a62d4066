// The worker's side.
#include <poll.h>
#include <unistd.h>

#include <list>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "kerf/error.h"
#include "runtime/tuner/compiler.h"
#include "runtime/tuner/lines.h"
#include "runtime/tuner/worker.h"

namespace kerf::runtime {

namespace {

using nlohmann::json;

class Server {
 public:
  explicit Server(int socket) : socket_(socket) {}

  void say(std::int64_t id, json answer) {
    answer["id"] = id;
    const std::lock_guard lock(writing_);
    write_line(socket_, answer.dump(-1, ' ', false, json::error_handler_t::replace));
  }
  void fail(std::int64_t id, const std::exception_ptr& error, WisdomStatus otherwise) {
    const Ending ending = ending_of(error, otherwise);
    say(id, {{"status", static_cast<int>(ending.status)}, {"reason", ending.reason}});
  }

  void setup(std::int64_t id, const std::string& text,
             const std::function<std::unique_ptr<TuneSubject>(const std::string&)>& make) {
    attempt(id, [&] { subject_ = make(text); });
  }

  void begin(std::int64_t id, const std::string& part) {
    compiling_.clear();
    made_.clear();
    attempt(id, [&] { subject_->begin(part); });
  }

  /// Answers what becomes of a step of no candidate.
  void attempt(std::int64_t id, const std::function<void()>& step) {
    const auto refuse = [&](const char* kind, const std::exception& e) {
      say(id, {{"error", e.what()}, {"kind", kind}});
    };
    try {
      step();
      say(id, json::object());
    } catch (const UsageError& e) {
      refuse("usage", e);
    } catch (const DeviceError& e) {
      refuse("device", e);
    } catch (const std::bad_alloc& e) {
      refuse("device", e);
    } catch (const std::exception& e) {
      refuse("internal", e);
    }
  }

  void compile(std::int64_t id, const TunePoint& point) {
    compiling_.emplace_back([this, id, point] {
      try {
        const auto resources = make(point);
        json answer = json::object();
        if (resources)
          answer["resources"] = {{"registers", resources->registers},
                                 {"threads", resources->threads},
                                 {"blocks", resources->blocks},
                                 {"shared_bytes", resources->shared_bytes},
                                 {"local_bytes", resources->local_bytes}};
        say(id, std::move(answer));
      } catch (...) {
        fail(id, std::current_exception(), WisdomStatus::compile);
      }
    });
  }

  void answer(const std::string& what, std::int64_t id, const TunePoint& point) {
    try {
      if ((what == "check" || what == "run") && !is_made(point)) make(point);  // by the process before this one
      if (what == "check") return say(id, {{"wrong", subject_->check(point)}});
      if (what == "spent") return say(id, {{"spent", subject_->spent()}});
      if (what == "run") return say(id, {{"ms", subject_->run(point)}});
      subject_->forget(point);
      const std::lock_guard lock(making_);
      made_.erase(point);
      say(id, json::object());
    } catch (...) {
      fail(id, std::current_exception(), WisdomStatus::fault);
    }
  }

  void run_each(std::int64_t id, const std::vector<TunePoint>& points) {
    try {
      for (const TunePoint& p : points)
        if (!is_made(p)) make(p);
      const auto ms = subject_->run_each(points);
      say(id, {{"ms", ms.value_or(std::vector<double>{})}});
    } catch (...) {
      fail(id, std::current_exception(), WisdomStatus::fault);
    }
  }

  bool ready() const { return subject_ != nullptr; }

 private:
  std::optional<KernelResources> make(const TunePoint& point) {
    auto resources = subject_->compile(point);
    const std::lock_guard lock(making_);
    made_.insert(point);
    return resources;
  }
  bool is_made(const TunePoint& point) {
    const std::lock_guard lock(making_);
    return made_.count(point) > 0;
  }

  int socket_;
  std::mutex writing_, making_;
  std::unique_ptr<TuneSubject> subject_;
  std::set<TunePoint> made_;
  std::list<std::jthread> compiling_;  // last: joined before what they use goes
};

}  // namespace

int serve_candidates(int socket, const std::function<std::unique_ptr<TuneSubject>(const std::string& setup)>& make) {
  // A candidate that hangs must not outlive who asked for it.
  std::thread([socket] {
    pollfd peer{.fd = socket, .events = POLLRDHUP, .revents = 0};
    while (poll(&peer, 1, -1) < 0 || (peer.revents & (POLLRDHUP | POLLHUP)) == 0) {
    }
    _exit(0);
  }).detach();
  Server server(socket);
  LineReader lines(socket);
  while (const auto line = lines.next()) {
    const json question = json::parse(*line, nullptr, false);
    if (!question.is_object()) return 2;
    const auto what = question.value("do", std::string());
    const auto id = question.value("id", std::int64_t{-1});
    if (what == "setup") {
      server.setup(id, question.value("setup", std::string()), make);
      continue;
    }
    if (!server.ready()) return 2;
    if (what == "begin") {
      server.begin(id, question.value("part", std::string()));
      continue;
    }
    if (what == "run_each") {
      server.run_each(id, question.value("points", std::vector<TunePoint>{}));
      continue;
    }
    const auto point = question.value("point", TunePoint{});
    if (what == "compile")
      server.compile(id, point);
    else
      server.answer(what, id, point);
  }
  return 0;
}

}  // namespace kerf::runtime
