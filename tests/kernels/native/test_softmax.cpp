#include <cmath>
#include <limits>
#include <stdexcept>

#include "check.hpp"

namespace {

using Labels = std::vector<std::int32_t>;

Exact losses_of(const Exact& logits, const Labels& labels, std::size_t classes) {
  Exact losses(labels.size());
  for (std::size_t row = 0; row < labels.size(); ++row) {
    if (labels[row] < 0) continue;
    const double* from = logits.data() + row * classes;
    double top = from[0], total = 0;
    for (std::size_t i = 0; i < classes; ++i) top = std::max(top, from[i]);
    for (std::size_t i = 0; i < classes; ++i) total += std::exp(from[i] - top);
    losses[row] = top + std::log(total) - from[labels[row]];
  }
  return losses;
}

void test_shape(const Machine& machine, const Labels& labels, std::size_t classes, float spread) {
  const auto rows = static_cast<long>(labels.size());
  Numbers logits = random_numbers(labels.size() * classes, 1);
  for (float& logit : logits) logit *= spread;
  const Numbers dlosses = random_numbers(labels.size(), 2);
  const auto moving = [&](const Exact& moved) { return losses_of(moved, labels, classes); };
  const std::string name = machine.name + " cross_entropy " + std::to_string(rows) + " x " + std::to_string(classes);
  check(name, {moving(exact(logits)), slopes(moving, logits, dlosses)}, FLOAT_ERROR, [&] {
    std::vector<Numbers> found = {blank(labels.size()), blank(logits.size())};
    Numbers kept = blank(2 * labels.size());
    machine.kernels->cross_entropy(logits.data(), labels.data(), found[0].data(), kept.data(), rows,
                                   static_cast<long>(classes));
    machine.kernels->cross_entropy_back(dlosses.data(), logits.data(), labels.data(), kept.data(), found[1].data(),
                                        rows, static_cast<long>(classes));
    return found;
  });
}

bool refuses(const Machine& machine, std::int32_t label) {
  const Numbers logits = random_numbers(3, 1);
  float loss, kept[2];
  try {
    machine.kernels->cross_entropy(logits.data(), &label, &loss, kept, 1, 3);
  } catch (const std::out_of_range&) {
    return true;
  }
  return false;
}

}  // namespace

void test_softmax(const Machine& machine) {
  test_shape(machine, {}, 3, 1.0f);
  test_shape(machine, {0}, 1, 1.0f);
  test_shape(machine, {0, 4, -1, 2}, 5, 1.0f);
  test_shape(machine, {16, -1, -1, 0}, 17, 20.0f);
  test_shape(machine, {-1, -1}, 40, 1.0f);
  test_shape(machine, {100, 7, 32}, 101, 5.0f);
  test_shape(machine, Labels(700, 3), 6, 2.0f);
  require(refuses(machine, 3) && refuses(machine, -2), machine.name + " cross_entropy refuses a wrong label");
}
