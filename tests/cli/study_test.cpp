// kerf filter-study: the page it writes.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <string>
#include <thread>

#include "tests/cli/command.h"
#include "tests/cli/page.h"

using namespace cli;

TEST_CASE("kerf filter-study writes one page that needs nothing else: a plot each, a row each, its command") {
  const Scratch page(".html"), picture(".svg");
  const json j =
      kerf_json(fmt::format("filter-study --shape 64,16,600 --thresholds 4,6 --orders auto,norms --out {} --svg {}",
                            page.path, picture.path));
  CHECK(j["planned"] == 12);
  REQUIRE(j["points"].size() == 12);
  CHECK(j["exact"]["kept_share"] == 1);
  CHECK(j["exact"]["de_err"].get<double>() < 1e-5);
  for (const json& point : j["points"]) {
    CHECK(point["both_ms"].get<double>() > 0);
    CHECK(point["de_err"].get<double>() > 0);
    CHECK(point["dc_err"].get<double>() > 0);
    CHECK(point["kept_share"].get<double>() > 0);
  }
  const std::string html = page.read();
  CHECK(html.starts_with("<!DOCTYPE html>"));
  CHECK(tag_error(html) == "");
  CHECK(count(html, "<svg ") == 5);
  CHECK(count(html, "<figure") == 5);
  CHECK(count(html, "<polyline ") == 2 * (3 * 3 + 2 * 2));  // two plots by time leave a rule out
  CHECK(count(html, "<tr>") == 1 + 1 + 12);
  CHECK(html.find("kerf filter-study --shape 64,16,600") != std::string::npos);
  CHECK(html.find("width=device-width") != std::string::npos);
  for (const char* outside : {"http", "<script", "src=", "@import", "url("})
    CHECK(html.find(outside) == std::string::npos);
  const std::string svg = picture.read();
  CHECK(svg.starts_with("<svg xmlns="));
  CHECK(tag_error(svg) == "");
  CHECK(count(svg, "<polyline ") == 2 * 3);
}

TEST_CASE("kerf filter-study: Ctrl-C ends the sweep and leaves a page of what was measured") {
  const Scratch page(".html"), log(".log");
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    signal(SIGINT, SIG_DFL);
    const int file = open(log.path.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0600);
    dup2(file, STDOUT_FILENO);
    dup2(file, STDERR_FILENO);
    execl(KERF_COMMAND, "kerf", "filter-study", "--shape", "64,16,600", "--out", page.path.c_str(), nullptr);
    _exit(127);
  }
  int status = 0;
  for (int i = 0; i < 6000 && log.read().find("order auto") == std::string::npos; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  kill(child, SIGINT);
  REQUIRE(waitpid(child, &status, 0) == child);
  CAPTURE(log.read());
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 130);
  const std::string html = page.read();
  CHECK(tag_error(html) == "");
  CHECK(html.find("<b>Interrupted:</b> ") != std::string::npos);
  CHECK(html.find(" of 135 points") != std::string::npos);
}

TEST_CASE("kerf filter-study: a wrong call exits with 2 and says what to change") {
  refused("filter-study --shape 9,8,700", 2, "--out");
  refused("filter-study --out /tmp/x.html", 2, "no input: give --data DIR, --shape N,D,V or both");
  refused("filter-study --shape 9,8,700 --out /nonexistent/x.html", 2, "--out /nonexistent/x.html: cannot be written");
  refused("filter-study --shape 9,8,700 --out /tmp/x.html --svg /nonexistent/x.svg", 2,
          "--svg /nonexistent/x.svg: cannot");
  refused("filter-study --shape 0,8,700 --out /tmp/x.html", 2, "at least one token");
  refused("filter-study --shape 9,8,700 --out /tmp/x.html --orders best", 2, "best");
  refused("filter-study --shape 9,8,700 --out /tmp/x.html --thresholds 61", 2, "61");
  refused("filter-study --data /nonexistent --out /tmp/x.html", 2, "/nonexistent: no such folder");
}
