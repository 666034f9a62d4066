// The kerf command as a shell sees it: exit codes, JSON fields and their types, texts of errors.
#include <doctest/doctest.h>
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "tests/cli/command.h"

using namespace cli;

TEST_CASE("kerf check --json has every field that tools rely on, and passes") {
  for (const char* arguments : {"--dtype f32 --reduction none --seed 4", "--dtype bf16 --reduction mean --threads 1",
                                "--dtype f16 --reduction sum --strategy min_memory"}) {
    const json j = kerf_json(fmt::format("check --shape 61,37,1031 --device cpu {}", arguments));
    for (const char* field : {"loss_err", "lse_err", "de_err", "dc_err", "de_worst_row", "dc_worst_row",
                              "de_median_row", "dc_median_row", "kept_share", "dropped_mass"}) {
      CAPTURE(field);
      REQUIRE(j.contains(field));
      CHECK(j[field].is_number());
      CHECK(j[field].get<double>() >= 0);
    }
    CHECK(j["workspace_bytes"].is_number_unsigned());
    CHECK(j["strategy"].is_string());
    CHECK(j["device"] == "cpu");
    CHECK(j["pass"] == true);
    CHECK(j["valid_rows"] == 58);
    // An error of exactly 0 in every gradient would mean that nothing was compared.
    CHECK(j["de_err"].get<double>() > 0);
    CHECK(j["dc_err"].get<double>() > 0);
    CHECK(j["de_worst_row"].get<double>() >= j["de_median_row"].get<double>());
  }
}

TEST_CASE("kerf check holds in corners: one of everything, no rows, all rows ignored, one token in the vocabulary") {
  for (const char* shape : {"1,1,1", "0,5,7", "33,1,19", "5,64,1", "1,333,2"}) {
    for (const char* dtype : {"f32", "bf16", "f16"}) {
      const json j = kerf_json(fmt::format("check --shape {} --dtype {} --reduction mean", shape, dtype));
      CHECK(j["pass"] == true);
    }
  }
  for (const char* reduction : {"none", "mean", "sum"})
    CHECK(kerf_json(fmt::format("check --shape 9,8,7 --ignored 1 --reduction {}", reduction))["pass"] == true);
}

TEST_CASE("kerf check prints a table for people") {
  const Result r = kerf("check --shape 20,16,100 --dtype bf16");
  CHECK(r.code == 0);
  for (const char* word : {"worst row", "median row", "lse", "workspace", "passed"})
    CHECK(r.out.find(word) != std::string::npos);
}

TEST_CASE("kerf bench --json has medians, spreads, ratios and workspace") {
  const json j = kerf_json("bench --shape 40,64,900 --seconds 0.1 --threads 1 --table");
  for (const char* field : {"forward_ms", "backward_ms", "both_ms", "forward_ms_spread", "backward_ms_spread",
                            "both_ms_spread", "forward_gflops", "kept_share"}) {
    CAPTURE(field);
    REQUIRE(j.contains(field));
    CHECK(j[field].is_number());
    CHECK(j[field].get<double>() > 0);
  }
  CHECK(j["both_ms"].get<double>() >= j["forward_ms"].get<double>());
  CHECK(j["threads"] == 1);
  CHECK(j["device"] == "cpu");
  CHECK(j["strategy"].is_string());
  CHECK(j["workspace_bytes"].is_number_unsigned());
  if (j["matmul_ms"].is_null()) {
    CHECK(j["forward_ratio"].is_null());
    CHECK(j["both_ratio"].is_null());
  } else {
    CHECK(std::abs(j["forward_ratio"].get<double>() / (j["forward_ms"].get<double>() / j["matmul_ms"].get<double>()) -
                   1) < 1e-9);
    CHECK(std::abs(j["both_ratio"].get<double>() / (j["both_ms"].get<double>() / j["matmul_ms"].get<double>()) - 1) <
          1e-9);
  }
  REQUIRE(j["table"].size() == 2);
  for (const json& row : j["table"])
    for (const char* field : {"loss_fw_ms", "loss_bw_ms", "loss_fw_bw_ms", "loss_fw_mib", "loss_bw_mib"})
      CHECK(row[field].get<double>() > 0);
}

TEST_CASE("kerf bench --json-file writes the JSON beside the table") {
  const auto file = std::filesystem::temp_directory_path() / fmt::format("kerf-bench-{}.json", getpid());
  const std::string bench = "bench --shape 4,8,90 --seconds 0 --json-file ";
  const Result r = kerf(bench + file.string());
  CHECK(r.code == 0);
  CHECK(r.out.find("median ms") != std::string::npos);
  std::ifstream in(file);
  CHECK(json::parse(in)["shape"] == json({4, 8, 90}));
  std::filesystem::remove(file);
  refused(bench + "/nonexistent/x.json", 2, "--json-file /nonexistent/x.json: cannot be written");
}

TEST_CASE("kerf bench takes the shape from a model or a config.json, and says what a bad one lacks") {
  const auto folder = std::filesystem::temp_directory_path() / fmt::format("kerf-config-{}", getpid());
  std::filesystem::create_directories(folder);
  const auto write = [&](const std::string& content) { std::ofstream(folder / "config.json") << content; };
  const std::string bench = fmt::format("bench --seconds 0 --tokens 3 --model {}", folder.string());
  const auto shape = [&] { return kerf_json(bench)["shape"]; };
  write(R"({"hidden_size": 24, "vocab_size": 300})");
  CHECK(shape() == json({3, 24, 300}));
  write(R"({"n_embd": 16, "vocab_size": 200})");
  CHECK(shape() == json({3, 16, 200}));
  write(R"({"model_type": "x", "text_config": {"d_model": 8, "vocab_size": 100}, "hidden_size": null})");
  CHECK(shape() == json({3, 8, 100}));
  write(R"({"vocab_size": 100})");
  refused(bench, 2, "has no hidden_size, n_embd or d_model");
  write(R"({"hidden_size": 100, "vocab_size": "many"})");
  refused(bench, 2, "has no vocab_size");
  write("{\"hidden_size\": 1");
  refused(bench, 2, "not a JSON object");
  write("[1, 2]");
  refused(bench, 2, "not a JSON object");
  write(std::string(100000, '['));
  refused(bench, 2, "not a JSON object");
  std::filesystem::remove_all(folder);
  refused(bench, 2, "no such file");
  refused("bench --model gpt5", 2,
          "'gpt5' is no known model and no config.json; the models are gemma2-2b, gemma2-9b, llama3-8b, qwen2.5-7b, "
          "mistral-nemo, phi3.5-mini, deepseek-v3, gpt2, vit-b16");
  const json j = kerf_json("emit --program combine --stage dsl --model vit-b16 --tokens 5");
  CHECK(j["shape"] == json({5, 768, 1000}));
}

TEST_CASE("kerf emit prints every program at every stage, also for other machines") {
  const std::string base = "emit --shape 64,96,1000 --dtype bf16 --program ";
  const json first = kerf_json(base + "lse_forward --stage dsl");
  REQUIRE(first["programs"].size() >= 5);
  for (const json& program : first["programs"]) {
    for (const char* stage : {"dsl", "tile"}) {
      const Result r = kerf(fmt::format("{}{} --stage {}", base, program.get<std::string>(), stage));
      CHECK(r.code == 0);
      CHECK(r.out.find("store") != std::string::npos);
    }
  }
  const Result llvm = kerf(base + "combine --stage llvm --target avx2");
  CHECK(llvm.code == 0);
  CHECK(llvm.out.find("define ") != std::string::npos);
  const Result x86 = kerf(base + "combine --stage asm --target avx512");
  CHECK(x86.out.find("zmm") != std::string::npos);
  const Result arm = kerf(base + "combine --stage asm --target aarch64");
  CHECK(arm.out.find("fmla") != std::string::npos);
}

TEST_CASE("kerf emit --filter prints the programs of a plan that filters") {
  const std::string base = "emit --shape 64,72,1000 --program keep_tiles";
  const std::string mass = kerf(base + " --filter mass").out, largest = kerf(base + " --filter max=2^-12").out;
  CHECK(mass.find("program keep_tiles") != std::string::npos);
  CHECK(largest.find("program keep_tiles") != std::string::npos);
  CHECK(mass != largest);
  const json j = kerf_json(base + " --filter mass --stage llvm --target avx2");
  CHECK(j["text"].get<std::string>().find("define") != std::string::npos);
  const json& programs = j["programs"];
  CHECK(std::find(programs.begin(), programs.end(), "correct_e") != programs.end());
  CHECK(kerf(base + " --filter mass --stage ptx --arch sm_80").out.find(".target sm_80") != std::string::npos);
}

TEST_CASE("kerf emit prints PTX for a GPU that is not there, and says what ptxas makes of it or how to get it") {
  for (const std::string arch : {"sm_80", "sm_90a"}) {
    const Result r = kerf("emit --shape 512,128,1000 --dtype bf16 --program lse_forward --stage ptx --arch " + arch);
    CHECK(r.code == 0);
    CHECK(r.out.find(".target " + arch) != std::string::npos);
    CHECK(r.out.find(".entry lse_forward") != std::string::npos);
  }
  const std::string stats = "emit --shape 512,128,1000 --dtype bf16 --stage sass-stats --arch sm_80";
  const Result none = kerf(stats, true, "KERF_PTXAS=/nonexistent/ptxas");
  CHECK(none.code == 3);
  CHECK(none.out.find("/nonexistent/ptxas") != std::string::npos);
  const Result some = kerf(stats + " --program lse_forward --json");
  if (some.code == 3) {
    MESSAGE("SKIPPED in part, no ptxas");
    return;
  }
  REQUIRE(some.code == 0);
  const json program = json::parse(some.out)["programs"][0];
  CHECK(program["program"] == "lse_forward");
  CHECK(program["registers"].get<int>() > 16);
  CHECK(program["threads"].get<int>() >= 32);
  CHECK(program["shared_bytes"].get<int>() > 0);
  CHECK(program["cubin_bytes"].get<int>() > 1000);
  CHECK(program["spill_bytes"].is_number());
}

TEST_CASE("kerf doctor says what was found") {
  const json j = kerf_json("doctor");
  CHECK(j["llvm"].get<std::string>().starts_with("19."));
  CHECK(j["threads"].get<int>() >= 1);
  CHECK(j["target"]["level"].is_string());
  CHECK(j["cuda_driver"].is_boolean());
  CHECK(j["advice"].is_array());
  CHECK(j["compiles"] == true);
  const Result r = kerf("doctor", false, "KERF_CPU_FEATURES=sse2 KERF_NUM_THREADS=1");
  CHECK(r.code == 0);
  CHECK(r.out.find("KERF_CPU_FEATURES=sse2 holds the processor's features back") != std::string::npos);
  CHECK(r.out.find("(KERF_NUM_THREADS)") != std::string::npos);
}

TEST_CASE("kerf: a wrong call exits with 2 and says what to change, what the device cannot with 3") {
  refused("", 2, "A subcommand is required");
  refused("chekc", 2,
          "no verb 'chekc'; the verbs are check, bench, filter-study, emit, doctor, cache, wisdom, tune, report");
  refused("check", 2, "no shape: give --shape N,D,V or --model NAME");
  refused("check --shape", 2, "--shape");
  refused("check --shape 1,2", 2, "expected N,D,V");
  refused("check --shape 1,0,5", 2, "D and V at least 1");
  refused("check --shape -1,3,5", 2, "N must be at least 0");
  refused("check --shape 4611686018427387904,4,4", 2, "passes what 63 bits count");
  refused("check --shape 1,1,1 --model gpt2", 2, "excludes");
  refused("check --shape 1,1,1 --dtype f64", 2, "'f64' is no dtype");
  refused("check --shape 1,1,1 --dtype i32", 2, "must be f32, bf16 or f16");
  refused("check --shape 1,1,1 --reduction max", 2, "'max' is no reduction; they are none, mean, sum");
  refused("check --shape 1,1,1 --frobnicate", 2, "--frobnicate");
  refused("check --shape 1,1,1 --ignored 2", 2, "--ignored");
  refused("check --shape 1,1,1 --data /nonexistent", 2, "/nonexistent: no such folder");
  refused("check --shape 1,1,1 --device gpu", 2, "--device gpu: must be cpu, cuda or cuda:N");
  refused("check --shape 1,1,1 --device cuda:x", 2, "--device cuda:x: must be cpu, cuda or cuda:N");
  refused("check --shape 1,1,1 --strategy fast", 2,
          "they are automatic, exact_recompute, min_memory, filtered, exact_stash, dense");
  refused("check --shape 1,1,1 --arch sm_80", 2, "--arch sm_80: is of a GPU; add --device cuda");
  refused("check --shape 1,1,1 --device cuda --arch sm_70", 2, "'sm_70' is no GPU architecture");
  refused("check --shape 1,1048576,1073741823", 3, "GiB of memory");
  refused("bench --shape 0,8,8", 2, "at least one token");
  refused("emit --shape 1,1,1", 2, "--program");
  refused("emit --shape 64,72,1000 --program keep_tiles", 2, "no program 'keep_tiles'");
  refused("emit --shape 64,72,1000 --program keep_tiles --filter most", 2, "--filter most: is no filter");
  refused("emit --shape 64,72,1000 --program keep_tiles --filter mass --strategy min_memory", 2, "filters nothing");
  refused("emit --shape 1,1,1 --program lse_backward", 2, "lse_forward, combine, grad_tiles");
  refused("emit --shape 1,1,1 --program combine --stage hlo", 2,
          "'hlo' is no stage; they are dsl, tile, llvm, asm, ptx, sass-stats");
  refused("emit --shape 1,1,1 --program combine --stage ptx", 2, "--stage ptx: needs --arch, as in --arch sm_90a");
  refused("emit --shape 1,1,1 --stage ptx --arch sm_80", 2, "--program");
  refused("emit --shape 1,1,1 --stage ptx --arch sm_10 --program combine", 2, "'sm_10' is no GPU architecture");
  refused("emit --shape 1,1,1 --stage sass-stats --arch sm_80 --target avx2", 2, "a GPU is named by --arch");
  refused("emit --shape 1,1,1 --program combine --stage asm --target mips", 2, "'mips' is no target");
}

TEST_CASE("kerf doctor --device cuda says what the driver tells, and that a GPU that computes nothing does not work") {
  const std::string environment =
      fmt::format("KERF_CUDA_DRIVER='{}' KERF_CUBLAS='{}'", KERF_FAKE_CUDA, KERF_FAKE_CUBLAS);
  const Result r = kerf("doctor --device cuda --json", false, environment);
  CHECK(r.code == 1);
  const json j = json::parse(r.out);
  CHECK(j["cuda_driver"] == true);
  CHECK(j["compiles"] == true);
  REQUIRE(j["gpu"].is_object());
  CHECK(j["gpu"]["compute_capability"] == "9.0");
  CHECK(j["gpu"]["level"] == "sm_90a");
  CHECK(j["gpu"]["compiles"] == false);
  CHECK(j["gpu"]["cublas"].get<std::string>().starts_with("cuBLAS 130100"));
  const Result text = kerf("doctor --device cuda:0", false, environment);
  CHECK(text.out.find("GPU compiler  FAILED: 0 + 1 came out as ") != std::string::npos);
  CHECK(kerf("doctor --device cuda:1", true, environment).code == 2);
}

TEST_CASE("kerf --device cuda without a driver exits with 3 and says how to get one") {
  for (const char* verb : {"check --shape 1,1,1", "bench --shape 1,1,1", "doctor"}) {
    const Result r =
        kerf(fmt::format("{} --device cuda", verb), true, "KERF_CUDA_DRIVER=libkerf-there-is-no-such-driver.so");
    CAPTURE(r.out);
    CHECK(r.code == 3);
    CHECK(r.out.find("cuda: there is no NVIDIA driver: libkerf-there-is-no-such-driver.so") != std::string::npos);
    CHECK(r.out.find("name its library in KERF_CUDA_DRIVER, or use the CPU") != std::string::npos);
  }
}

TEST_CASE("kerf --help shows an example of every verb") {
  for (const char* verb : {"check", "bench", "filter-study", "emit", "doctor"}) {
    const Result r = kerf(fmt::format("{} --help", verb));
    CHECK(r.code == 0);
    CHECK(r.out.find(fmt::format("Example: kerf {}", verb)) != std::string::npos);
  }
  CHECK(kerf("--help").code == 0);
}

TEST_CASE("kerf: an interrupt ends it with 130") {
  // Threads at work are not waited for then, which the thread sanitizer would call a leak.
  const std::string line = fmt::format(
      "TSAN_OPTIONS=report_thread_leaks=0 timeout --preserve-status -s INT 1 '{}' bench --shape 256,768,50257 "
      "--seconds 60 >/dev/null 2>&1",
      KERF_COMMAND);
  const int status = std::system(line.c_str());
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 130);
}
