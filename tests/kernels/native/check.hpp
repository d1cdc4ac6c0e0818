// What the tests share: numbers, the comparison with double precision, and the comparison between thread counts.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernels.hpp"

using Numbers = std::vector<float>;
using Exact = std::vector<double>;
using mindpet::Kernels;

constexpr double FLOAT_ERROR = 1e-5, BRAIN_ERROR = 1e-2;  // the largest error over the largest magnitude

// An instruction set under test.
struct Machine {
  std::string name;
  const Kernels* kernels;
};

// A form in which numbers are kept for a gradient.
struct Keeping {
  std::string name;
  const mindpet::KeepingKernels* kernels;
  bool rounds;
  double error;  // of gradients
};

// The forms that an instruction set has.
inline std::vector<Keeping> keepings(const Machine& machine) {
  std::vector<Keeping> found = {{machine.name, &machine.kernels->keeping, false, FLOAT_ERROR}};
  if (machine.kernels->rounding.keep != nullptr) {
    found.push_back({machine.name + " bfloat16", &machine.kernels->keeping_bf16, true, BRAIN_ERROR});
  }
  return found;
}

// `x` as it is kept.
Numbers kept(const Machine& machine, const Keeping& keeping, const Numbers& x);

// Normal numbers that depend on `seed` and `count` only.
Numbers random_numbers(std::size_t count, unsigned seed);

// Not-a-number everywhere, so that an element that nobody writes is found.
Numbers blank(std::size_t count);

// Runs `compute` with several thread counts: the first of its results must agree with `expected`, the others with the
// first bit for bit.
void check(const std::string& name, const std::vector<Exact>& expected, double tolerance,
           const std::function<std::vector<Numbers>()>& compute);

void require(bool holds, const std::string& name);

// The gradient of sum(weights function(x)) by x, from central differences.
Exact slopes(const std::function<Exact(const Exact&)>& function, const Numbers& x, const Numbers& weights);

inline Exact exact(const Numbers& values) { return Exact(values.begin(), values.end()); }

// What kernels compute, in double precision.
double gelu(double x);
double gelu_tanh(double x);
double sigmoid(double x);

// (x - mean) / sqrt(variance + NORM_EPSILON) * gamma + beta in rows of as many columns as gamma has; with `centred`
// false, RMSNorm, which has no mean and no beta.
constexpr float NORM_EPSILON = 1e-3f;
Exact normalise(const Exact& x, const Exact& gamma, const Exact& beta, bool centred);

// Pairs of each head turned by angles of which these are cosines and sines.
Exact rotate(const mindpet::RotarySizes&, const Exact& x, const Exact& cosine, const Exact& sine);

int failures();

void test_threads();
void test_block_layout();
void test_activations(const Machine&);
void test_norms(const Machine&);
void test_softmax(const Machine&);
void test_rotary(const Machine&);
void test_dense(const Machine&);
void test_attention(const Machine&);
void test_block(const Machine&);
