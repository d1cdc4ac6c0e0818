#include "check.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>

#include "threads.hpp"

namespace {

int failed = 0;

void report(const std::string& name, const char* problem, std::size_t place) {
  if (++failed <= 50) std::printf("FAILED %s: %s in result %zu\n", name.c_str(), problem, place);
}

bool agrees(const Numbers& found, const Exact& expected, double tolerance) {
  double largest = 1e-3, error = 0;  // the first is for results that are all 0
  for (double value : expected) largest = std::max(largest, std::abs(value));
  for (std::size_t i = 0; i < expected.size(); ++i) {
    if (!std::isfinite(found[i])) return false;
    error = std::max(error, std::abs(found[i] - expected[i]));
  }
  return error <= tolerance * largest;
}

}  // namespace

Numbers random_numbers(std::size_t count, unsigned seed) {
  std::mt19937 generator(static_cast<unsigned>(count) * 31u + seed);
  std::normal_distribution<float> normal;
  Numbers values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

Numbers kept(const Machine& machine, const Keeping& keeping, const Numbers& x) {
  if (!keeping.rounds) return x;
  Numbers halves = blank((x.size() + 1) / 2);
  machine.kernels->rounding.keep(x.data(), static_cast<long>(x.size()), halves.data());
  return halves;
}

Numbers blank(std::size_t count) { return Numbers(count, std::numeric_limits<float>::quiet_NaN()); }

void check(const std::string& name, const std::vector<Exact>& expected, double tolerance,
           const std::function<std::vector<Numbers>()>& compute) {
  std::vector<Numbers> first;
  for (int threads : {1, 2, 5}) {
    mindpet::set_threads(threads);
    const std::vector<Numbers> found = compute();
    if (first.empty()) first = found;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      if (found[i].size() != expected[i].size()) {
        report(name, "the size is wrong", i);
      } else if (threads == 1 && !agrees(found[i], expected[i], tolerance)) {
        report(name, "the numbers are wrong", i);
      } else if (!found[i].empty() &&
                 std::memcmp(found[i].data(), first[i].data(), found[i].size() * sizeof(float)) != 0) {
        report(name, "more threads give other bits", i);
      }
    }
  }
}

void require(bool holds, const std::string& name) {
  if (!holds) report(name, "it does not hold", 0);
}

Exact slopes(const std::function<Exact(const Exact&)>& function, const Numbers& x, const Numbers& weights) {
  constexpr double STEP = 1e-5;
  Exact moved = exact(x), result(x.size());
  const auto scalar = [&] {
    const Exact values = function(moved);
    double total = 0;
    for (std::size_t i = 0; i < values.size(); ++i) total += values[i] * weights[i];
    return total;
  };
  for (std::size_t i = 0; i < x.size(); ++i) {
    moved[i] = x[i] + STEP;
    const double above = scalar();
    moved[i] = x[i] - STEP;
    result[i] = (above - scalar()) / (2 * STEP);
    moved[i] = x[i];
  }
  return result;
}

int failures() { return failed; }
