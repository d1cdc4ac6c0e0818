#include <cmath>

#include "check.hpp"

namespace {

const long COUNTS[] = {0, 1, 7, 16, 33, 1000, 16384 + 5};

double gelu_slope(double x) {
  return 0.5 * (1 + std::erf(x / std::sqrt(2.0))) + x * std::exp(-0.5 * x * x) / std::sqrt(2 * std::acos(-1.0));
}

double inner(double x) { return std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x); }

double gelu_tanh_slope(double x) {
  const double t = std::tanh(inner(x));
  return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * std::sqrt(2 / std::acos(-1.0)) * (1 + 3 * 0.044715 * x * x);
}

double silu_slope(double z) { return sigmoid(z) * (1 + z * (1 - sigmoid(z))); }

using Forward = void (*)(const float*, float*, long);
using Rounding = void (*)(const float*, float*, void*, long);
using Backward = void (*)(const void*, const float*, float*, long);

// The forward pass that keeps a rounded x, and what comes of it.
void test_rounding(const std::string& name, Rounding forward, Backward backward, const Numbers& x, const Numbers& dy,
                   const Exact& y, const Exact& dx) {
  const auto count = static_cast<long>(x.size());
  Numbers halves = blank((x.size() + 1) / 2);
  check(name + " keeping bfloat16", {y}, FLOAT_ERROR, [&] {
    Numbers found = blank(x.size());
    forward(x.data(), found.data(), halves.data(), count);
    return std::vector<Numbers>{found};
  });
  check(name + " of bfloat16", {dx}, BRAIN_ERROR, [&] {
    Numbers gradient = blank(x.size());
    backward(halves.data(), dy.data(), gradient.data(), count);
    return std::vector<Numbers>{gradient};
  });
}

void test_one(const std::string& name, Forward forward, Backward backward, Rounding rounding, Backward back_bf16,
              double (*value)(double), double (*slope)(double)) {
  for (long count : COUNTS) {
    Numbers x = random_numbers(static_cast<std::size_t>(count), 1), dy = random_numbers(x.size(), 2);
    for (float& element : x) element *= 4;
    const float extremes[] = {0.0f, -0.0f, 30.0f, -30.0f, 1e4f, -1e4f};
    for (std::size_t i = 0; i < std::min<std::size_t>(x.size() / 2, 6); ++i) x[i] = dy[i] = extremes[i] / 1e3f;
    Exact y(x.size()), dx(x.size());
    for (std::size_t i = 0; i < x.size(); ++i) {
      y[i] = value(x[i]);
      dx[i] = slope(x[i]) * dy[i];
    }
    check(name + " " + std::to_string(count), {y, dx}, FLOAT_ERROR, [&] {
      Numbers found = blank(x.size()), gradient = blank(x.size());
      forward(x.data(), found.data(), count);
      backward(x.data(), dy.data(), gradient.data(), count);
      return std::vector<Numbers>{found, gradient};
    });
    if (rounding != nullptr) test_rounding(name + " " + std::to_string(count), rounding, back_bf16, x, dy, y, dx);
  }
  const float far[] = {-1e4f, 1e4f, std::nanf("")};
  float found[3];
  forward(far, found, 3);
  require(std::abs(found[0]) < 1e-30f && found[1] == 1e4f && std::isnan(found[2]), name + " far from 0");
}

}  // namespace

double gelu(double x) { return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0))); }

double gelu_tanh(double x) { return 0.5 * x * (1 + std::tanh(inner(x))); }

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

void test_activations(const Machine& machine) {
  const Kernels& with = *machine.kernels;
  test_one(machine.name + " gelu", with.gelu, with.keeping.gelu_back, with.rounding.gelu,
           with.keeping_bf16.gelu_back, gelu, gelu_slope);
  test_one(machine.name + " gelu_tanh", with.gelu_tanh, with.keeping.gelu_tanh_back, with.rounding.gelu_tanh,
           with.keeping_bf16.gelu_tanh_back, gelu_tanh, gelu_tanh_slope);
  for (long count : COUNTS) {
    const auto size = static_cast<std::size_t>(count);
    const Numbers gate = random_numbers(size, 1), x = random_numbers(size, 2), dy = random_numbers(size, 3);
    Exact y(size), dgate(size), dx(size);
    for (std::size_t i = 0; i < size; ++i) {
      y[i] = gate[i] * sigmoid(gate[i]) * x[i];
      dgate[i] = silu_slope(gate[i]) * x[i] * dy[i];
      dx[i] = gate[i] * sigmoid(gate[i]) * dy[i];
    }
    for (const Keeping& keeping : keepings(machine)) {
      if (keeping.rounds && count == 1) continue;  // a single number may be the small difference of large ones
      check(keeping.name + " silu_gate " + std::to_string(count), {y, dgate, dx}, keeping.error, [&] {
        std::vector<Numbers> found = {blank(size), blank(size), blank(size)};
        with.silu_gate(gate.data(), x.data(), found[0].data(), count);
        const Numbers kept_gate = kept(machine, keeping, gate), kept_x = kept(machine, keeping, x);
        keeping.kernels->silu_gate_back(kept_gate.data(), kept_x.data(), dy.data(), found[1].data(), found[2].data(),
                                        count);
        return found;
      });
    }
  }
}
