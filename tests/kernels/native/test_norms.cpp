#include <cmath>

#include "check.hpp"

namespace {

struct Shape {
  long rows, columns;
  std::size_t size() const { return static_cast<std::size_t>(rows * columns); }
};

const Shape SHAPES[] = {{0, 5}, {1, 3}, {1, 16}, {3, 7}, {5, 33}, {70, 20}};

void test_layer_norm(const Machine& machine, Shape shape, float offset, bool with_residual) {
  Numbers x = random_numbers(shape.size(), 1);
  for (float& element : x) element += offset;
  const auto columns = static_cast<std::size_t>(shape.columns);
  const Numbers residual = random_numbers(shape.size(), 2), dy = random_numbers(shape.size(), 3);
  const Numbers gamma = random_numbers(columns, 4), beta = random_numbers(columns, 5);
  Exact sums = exact(x);
  for (std::size_t i = 0; with_residual && i < sums.size(); ++i) sums[i] += residual[i];
  const Exact y = normalise(sums, exact(gamma), exact(beta), true);
  const auto moving = [&](const Exact& moved) {
    return normalise(moved, exact(gamma), exact(beta), true);
  };
  const Exact dx = slopes(moving, Numbers(sums.begin(), sums.end()), dy);
  const Exact dgamma = slopes(
      [&](const Exact& moved) { return normalise(sums, moved, exact(beta), true); }, gamma, dy);
  const Exact dbeta = slopes(
      [&](const Exact& moved) { return normalise(sums, exact(gamma), moved, true); }, beta, dy);
  const std::string name = " layer_norm " + std::to_string(shape.rows) + " x " +
                           std::to_string(shape.columns) + (with_residual ? " with residual" : "");
  for (const Keeping& keeping : keepings(machine)) {
    if (keeping.rounds && columns < 3) continue;  // the gradient is the small difference of large numbers
    check(keeping.name + name, {y, dx, dgamma, dbeta}, keeping.error, [&] {
      std::vector<Numbers> found = {blank(shape.size()), blank(shape.size()), blank(columns), blank(columns)};
      Numbers normalised = blank(shape.size()), inverse = blank(static_cast<std::size_t>(shape.rows));
      keeping.kernels->layer_norm(x.data(), with_residual ? residual.data() : nullptr, gamma.data(), beta.data(),
                                  NORM_EPSILON, found[0].data(), normalised.data(), inverse.data(),
                                  shape.rows, shape.columns);
      keeping.kernels->layer_norm_back(dy.data(), gamma.data(), normalised.data(), inverse.data(), found[1].data(),
                                       found[2].data(), found[3].data(), shape.rows, shape.columns);
      return found;
    });
    check(keeping.name + name + ", frozen", {dx}, keeping.error, [&] {
      std::vector<Numbers> found = {blank(shape.size())};
      Numbers sums = blank(shape.size()), normalised = sums;
      Numbers inverse = blank(static_cast<std::size_t>(shape.rows));
      keeping.kernels->layer_norm(x.data(), with_residual ? residual.data() : nullptr, gamma.data(), beta.data(),
                                  NORM_EPSILON, sums.data(), normalised.data(), inverse.data(),
                                  shape.rows, shape.columns);
      keeping.kernels->layer_norm_back(dy.data(), gamma.data(), normalised.data(), inverse.data(), found[0].data(),
                                       nullptr, nullptr, shape.rows, shape.columns);
      return found;
    });
  }
}

void test_rms_norm(const Machine& machine, Shape shape, bool with_residual) {
  const auto columns = static_cast<std::size_t>(shape.columns);
  const Numbers x = random_numbers(shape.size(), 1), residual = random_numbers(shape.size(), 2);
  const Numbers dy = random_numbers(shape.size(), 3), dtotal = random_numbers(shape.size(), 5);
  const Numbers gamma = random_numbers(columns, 4);
  const Exact zeros(columns);
  Exact sums = exact(x);
  for (std::size_t i = 0; with_residual && i < sums.size(); ++i) sums[i] += residual[i];
  const auto moving = [&](const Exact& moved) { return normalise(moved, exact(gamma), zeros, false); };
  Exact ds = slopes(moving, Numbers(sums.begin(), sums.end()), dy);
  for (std::size_t i = 0; with_residual && i < ds.size(); ++i) ds[i] += dtotal[i];
  const Exact dgamma = slopes(
      [&](const Exact& moved) { return normalise(sums, moved, zeros, false); }, gamma, dy);
  const Exact& total = with_residual ? sums : zeros;
  const auto compute = [&](bool trains) {
    std::vector<Numbers> found = {blank(shape.size()), blank(shape.size()),
                                  with_residual ? blank(shape.size()) : Numbers(columns)};
    if (trains) found.push_back(blank(columns));
    Numbers inverse = blank(static_cast<std::size_t>(shape.rows));
    machine.kernels->rms_norm(x.data(), with_residual ? residual.data() : nullptr, gamma.data(),
                              NORM_EPSILON, found[0].data(), with_residual ? found[2].data() : nullptr,
                              inverse.data(), shape.rows, shape.columns);
    machine.kernels->rms_norm_back(dy.data(), with_residual ? dtotal.data() : nullptr,
                                   with_residual ? found[2].data() : x.data(), gamma.data(), inverse.data(),
                                   found[1].data(), trains ? found[3].data() : nullptr, shape.rows, shape.columns);
    return found;
  };
  const std::string name = " rms_norm " + std::to_string(shape.rows) + " x " + std::to_string(shape.columns) +
                           (with_residual ? " with residual" : "");
  check(machine.name + name, {moving(sums), ds, total, dgamma}, FLOAT_ERROR, [&] { return compute(true); });
  check(machine.name + name + ", frozen", {moving(sums), ds, total}, FLOAT_ERROR, [&] { return compute(false); });
}

}  // namespace

Exact normalise(const Exact& x, const Exact& gamma, const Exact& beta, bool centred) {
  Exact y(x.size());
  const std::size_t columns = gamma.size();
  for (std::size_t start = 0; start < x.size(); start += columns) {
    double mean = 0, squares = 0;
    for (std::size_t i = 0; centred && i < columns; ++i) mean += x[start + i] / static_cast<double>(columns);
    for (std::size_t i = 0; i < columns; ++i) {
      squares += (x[start + i] - mean) * (x[start + i] - mean) / static_cast<double>(columns);
    }
    for (std::size_t i = 0; i < columns; ++i) {
      y[start + i] = (x[start + i] - mean) / std::sqrt(squares + NORM_EPSILON) * gamma[i] + (centred ? beta[i] : 0);
    }
  }
  return y;
}

void test_norms(const Machine& machine) {
  for (const Shape& shape : SHAPES) {
    test_layer_norm(machine, shape, 0.0f, false);
    test_layer_norm(machine, shape, 2.0f, true);
    test_rms_norm(machine, shape, false);
    test_rms_norm(machine, shape, true);
  }
}
