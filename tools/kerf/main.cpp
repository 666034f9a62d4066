// kerf: checks, measures and shows the kernels of the loss from a shell.
//
// Exit codes: 0 fine, 1 a check failed, 2 the call is wrong, 3 this device cannot, 4 a bug of Kerf, 130 interrupted.
#include <fmt/format.h>

#include <algorithm>
#include <new>

#include "kerf/error.h"
#include "tools/kerf/verbs.h"
#include "tools/support/progress.h"

int main(int argc, char** argv) {
  using namespace kerf::tools;
  exit_on_interrupt();
  CLI::App app("Kerf computes the loss layer of large-vocabulary models without its logits.", "kerf");
  app.footer(
      "Exit codes: 0 fine, 1 a check failed, 2 the call is wrong, 3 this device cannot, 4 a bug of Kerf.\n"
      "Example: kerf check --shape 1000,333,50257 --dtype bf16");
  app.require_subcommand(1);
  app.set_help_all_flag("--help-all", "Help on every verb");
  Run run;
  add_check(app, run);
  add_bench(app, run);
  add_filter_study(app, run);
  add_emit(app, run);
  add_doctor(app, run);
  add_cache(app, run);
  add_wisdom(app, run);
  add_tune(app, run);
  add_report(app, run);
  add_tune_worker(app, run);

  const auto known = [&](const std::string& verb) {
    const auto verbs = app.get_subcommands(nullptr);
    return std::any_of(verbs.begin(), verbs.end(), [&](const CLI::App* v) { return v->get_name() == verb; });
  };
  const auto fail = [&](int code, const char* kind, const std::string& what) {
    const auto verbs = app.get_subcommands();
    fmt::print(stderr, "kerf{}: {}{}\n", verbs.empty() ? "" : " " + verbs[0]->get_name(), kind, what);
    return code;
  };
  try {
    if (argc > 1 && argv[1][0] != '-' && !known(argv[1]))
      return fail(
          2, "",
          fmt::format(
              "no verb '{}'; the verbs are check, bench, filter-study, emit, doctor, cache, wisdom, tune, report",
              argv[1]));
    app.parse(argc, argv);
    return run();
  } catch (const CLI::ParseError& e) {
    return e.get_exit_code() == 0 ? app.exit(e) : fail(2, "", e.what());  // 0: help was asked for
  } catch (const kerf::UsageError& e) {
    return fail(2, "", e.what());
  } catch (const kerf::DeviceError& e) {
    return fail(3, "", e.what());
  } catch (const std::bad_alloc&) {
    return fail(3, "", "out of memory; ask for a smaller shape");
  } catch (const std::exception& e) {
    return fail(4, "internal error, please report: ", e.what());
  }
}
