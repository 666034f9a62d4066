// How long a part of the loss takes, by a model of the machine. It ranks candidates; what it says in milliseconds is
// kept beside what is measured, so that it can be judged.
#include <algorithm>
#include <cmath>

#include "runtime/device_programs.h"
#include "runtime/loss_parts.h"

namespace kerf::runtime {

namespace {

double up(double x, double block) { return std::ceil(x / block) * block; }
double of(const TunePoint& p, const char* name, double otherwise = 1) {
  const auto at = p.find(name);
  return at == p.end() ? otherwise : static_cast<double>(at->second);
}

/// Cycles of one thread for a product of n x v x d, packed block by block, on vectors of `lanes`.
struct Cpu {
  double lanes, pairs;  // products of one lane at a time
  static constexpr double hertz = 2.5e9, pack = 1.5, touch = 1, exponential = 24;
  static constexpr double private_bytes = 1 << 20;

  double product(double N, double V, double D, double n, double v, double d, double rows, double vectors,
                 bool keeps_e) const {
    const double fma = N * V * D / (2 * lanes * pairs);
    // Two loads and two products a cycle; ten sums in flight hide a product's latency.
    const double loads = (rows + vectors) / (rows * vectors);
    const double waits = std::max(1.0, 10 / (rows * vectors));
    const double packed = N * V * D * ((keeps_e ? 0 : 1 / v) + 1 / n) * pack / lanes;
    const double sums = N * V * (D / d) * touch / lanes;
    const double tile = 4 * (n * v + (n + v) * d / pairs);
    return fma * std::max({1.0, loads, waits}) * (tile > private_bytes ? 1.15 : 1) + packed + sums;
  }
};

double cpu_ms(const PlanDesc& desc, const Target& target, const Machine& m, LossPart part, double tokens,
              const TunePoint& p) {
  const std::string level = target.level();
  const Cpu cpu{level.starts_with("avx512") ? 16.0
                : level == "avx2"           ? 8.0
                                            : 4.0,
                level == "avx512bf16" && desc.dtype == bf16 ? 2.0 : 1.0};
  const double n = of(p, "n"), v = of(p, "v"), d = of(p, "d"), rows = of(p, "rows", 6), vectors = of(p, "vectors", 2);
  const auto V = up(static_cast<double>(desc.vocabulary), v), D = up(static_cast<double>(desc.hidden), d);
  const auto even = [&](double instances) { return up(instances, m.units) / instances; };
  double cycles = 0;
  if (part != LossPart::backward) {
    const double N = up(tokens, n), parts = std::ceil(V / v / of(p, "split"));
    cycles +=
        (cpu.product(N, V, D, n, v, d, rows, vectors, of(p, "stage", 0) > 0) + N * V * Cpu::exponential / cpu.lanes) *
        even(parts * N / n);
    // A part of c that shared caches hold is read from memory once.
    const double bytes = v * of(p, "split") * D * static_cast<double>(size_of(desc.dtype));
    if (bytes > (16 << 20)) cycles *= 1.1;
  }
  if (part != LossPart::forward) {
    const double bn = of(p, "bn", n), N = up(tokens, bn);
    const double e_d = of(p, "e_d", d), c_d = of(p, "c_d", d);
    cycles +=
        cpu.product(N, V, D, bn, v, std::min(d, 128.0), rows, vectors, false) + N * V * Cpu::exponential / cpu.lanes;
    cycles += cpu.product(N, D, V, bn, e_d, v, rows, vectors, false) * even(N / bn * D / e_d);
    cycles += cpu.product(V, D, N, v, c_d, bn, rows, vectors, false) * even(V / v * D / c_d);
  }
  return 1000 * cycles / Cpu::hertz / m.units;
}

double gpu_ms(const PlanDesc& desc, const Machine& m, LossPart part, double tokens, const TunePoint& p) {
  const bool halves = desc.dtype != f32;
  const double clock = 1.6e9, peak = m.units * clock * (halves ? 4096 : 128), bandwidth = 4e12;
  const auto V = static_cast<double>(desc.vocabulary), D = static_cast<double>(desc.hidden);
  const auto size = static_cast<double>(size_of(desc.dtype));
  const auto l2 = static_cast<double>(m.l2_bytes > 0 ? m.l2_bytes : 50 << 20);
  // A tile's operands cross shared memory once for each of its rows and columns.
  const auto rate = [](double rows, double columns) { return 1 / (1 + 24 / rows + 24 / columns); };
  const auto product = [&](double rows, double columns, double depth, double r, double c, double steps, double band) {
    const double instances = std::ceil(rows / r) * std::ceil(columns / (c * steps));
    const double waves = std::ceil(instances / m.units) * m.units / instances;
    const double flops = 2 * up(rows, r) * up(columns, c) * depth;
    const double near = std::min(1.0, 0.6 * l2 / (band * r * depth * size));  // of a band's rows
    const double bytes = (rows / (r * band) * columns + rows * columns / (c * steps) * (1 - near)) * depth * size;
    return std::max(flops / (peak * rate(r, c)), bytes / bandwidth) * waves + instances / m.units * 2e-6;
  };
  double seconds = 0;
  const double v = of(p, "v");
  if (part != LossPart::backward) seconds += product(tokens, V, D, of(p, "n"), v, of(p, "split"), of(p, "band", 24));
  if (part != LossPart::forward) {
    const double n = of(p, "bn", of(p, "n"));
    seconds += product(tokens, V, D, n, v, 1, of(p, "band", 24));
    seconds += product(tokens, D, V, n, of(p, "e_d"), 1, 8) + product(V, D, tokens, v, of(p, "c_d"), 1, 8);
    seconds += 3 * tokens * V * size / bandwidth;  // dz, written and read twice
  }
  return 1000 * seconds;
}

}  // namespace

double predicted_ms(const PlanDesc& desc, const Target& target, const Machine& machine, LossPart part,
                    std::int64_t tokens, const TunePoint& point) {
  const auto N = static_cast<double>(tokens);
  return target.is_cuda() ? gpu_ms(desc, machine, part, N, point) : cpu_ms(desc, target, machine, part, N, point);
}

}  // namespace kerf::runtime
