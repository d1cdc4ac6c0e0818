#include "check.hpp"

namespace {

using mindpet::DenseKernels;
using mindpet::DenseSizes;

constexpr float SCALE = 1.5f;

// A matrix in double precision.
struct Table {
  long rows, columns;
  Exact values;

  Table(long rows, long columns) : rows(rows), columns(columns), values(static_cast<std::size_t>(rows * columns)) {}
  Table(long rows, long columns, const Numbers& from) : rows(rows), columns(columns), values(exact(from)) {}
  double& at(long i, long j) { return values[static_cast<std::size_t>(i * columns + j)]; }
  double at(long i, long j) const { return values[static_cast<std::size_t>(i * columns + j)]; }
};

Table turned(const Table& a) {
  Table result(a.columns, a.rows);
  for (long i = 0; i < a.rows; ++i)
    for (long j = 0; j < a.columns; ++j) result.at(j, i) = a.at(i, j);
  return result;
}

Table times(const Table& a, const Table& b, double scale = 1) {
  Table result(a.rows, b.columns);
  for (long i = 0; i < a.rows; ++i)
    for (long k = 0; k < a.columns; ++k)
      for (long j = 0; j < b.columns; ++j) result.at(i, j) += scale * a.at(i, k) * b.at(k, j);
  return result;
}

Table plus(Table a, const Table& b) {
  for (std::size_t i = 0; i < a.values.size(); ++i) a.values[i] += b.values[i];
  return a;
}

Table with_bias(Table a, const Numbers& bias) {
  for (long i = 0; i < a.rows; ++i)
    for (long j = 0; j < a.columns && !bias.empty(); ++j) a.at(i, j) += bias[static_cast<std::size_t>(j)];
  return a;
}

std::size_t area(long rows, long columns) { return static_cast<std::size_t>(rows * columns); }

Numbers numbers(long rows, long columns, unsigned seed) { return random_numbers(area(rows, columns), seed); }

// `round` is null, or makes of x what the products take.
void test_sizes(const std::string& name, const DenseKernels& with, void (*round)(const float*, void*, long, long),
                DenseSizes s, long rank, bool has_bias, double tolerance) {
  const Numbers x = numbers(s.rows, s.inputs, 1), weight = numbers(s.outputs, s.inputs, 2);
  const Numbers bias = has_bias ? numbers(1, s.outputs, 3) : Numbers{};
  const Numbers dy = numbers(s.rows, s.outputs, 4);
  const Numbers lora_a = numbers(rank, s.inputs, 5), lora_b = numbers(s.outputs, rank, 6);
  const Table X(s.rows, s.inputs, x), W(s.outputs, s.inputs, weight), D(s.rows, s.outputs, dy);
  const Table A(rank, s.inputs, lora_a), B(s.outputs, rank, lora_b);

  const float* shift = has_bias ? bias.data() : nullptr;
  const Table product = with_bias(times(X, turned(W)), bias), dproduct = times(D, W);
  check(name + " dense", {product.values, dproduct.values}, tolerance, [&] {
    std::vector<Numbers> found = {blank(area(s.rows, s.outputs)), blank(x.size())};
    with.forward(x.data(), weight.data(), shift, found[0].data(), s);
    with.backward(dy.data(), weight.data(), found[1].data(), s);
    return found;
  });

  const Table hidden = times(X, turned(A), SCALE), dhidden = times(D, B, SCALE);
  const std::vector<Exact> expected = {
      plus(product, times(hidden, turned(B))).values, hidden.values, plus(dproduct, times(dhidden, A)).values,
      times(turned(dhidden), X).values, times(turned(D), hidden).values};
  check(name + " lora", expected, tolerance, [&] {
    std::vector<Numbers> found = {blank(dy.size()), blank(area(s.rows, rank)), blank(x.size()), blank(lora_a.size()),
                                  blank(lora_b.size())};
    Numbers between = blank(area(s.rows, rank));
    Numbers prepared = round == nullptr ? x : blank(area(s.rows, (s.inputs + 1) / 2));
    if (round != nullptr) round(x.data(), prepared.data(), s.rows, s.inputs);
    with.lora_forward(x.data(), prepared.data(), weight.data(), shift, lora_a.data(), lora_b.data(), SCALE, found[0].data(),
                      found[1].data(), s, rank);
    with.lora_backward(dy.data(), prepared.data(), found[1].data(), weight.data(), lora_a.data(), lora_b.data(), SCALE,
                       found[2].data(), found[3].data(), found[4].data(), between.data(), s, rank);
    return found;
  });
}

void test_weight(const Machine& machine, DenseSizes s) {
  const Numbers x = numbers(s.rows, s.inputs, 1), dy = numbers(s.rows, s.outputs, 2);
  const Table expected = times(turned(Table(s.rows, s.outputs, dy)), Table(s.rows, s.inputs, x));
  check(machine.name + " weight of " + std::to_string(s.outputs), {expected.values}, FLOAT_ERROR, [&] {
    std::vector<Numbers> found = {blank(area(s.outputs, s.inputs))};
    machine.kernels->weight_back(dy.data(), x.data(), found[0].data(), s.rows, s.outputs, s.inputs);
    return found;
  });
}

void test_bias(const Machine& machine) {
  for (const auto& [rows, columns] : {std::pair<long, long>{0, 3}, {1, 1}, {31, 17}, {100, 50}}) {
    const Numbers dy = numbers(rows, columns, 1);
    Exact sums(static_cast<std::size_t>(columns));
    for (std::size_t i = 0; i < dy.size(); ++i) sums[i % sums.size()] += dy[i];
    check(machine.name + " bias of " + std::to_string(columns), {sums}, FLOAT_ERROR, [&, rows = rows, columns = columns] {
      std::vector<Numbers> found = {blank(static_cast<std::size_t>(columns))};
      machine.kernels->bias_back(dy.data(), found[0].data(), rows, columns);
      return found;
    });
  }
}

}  // namespace

void test_dense(const Machine& machine) {
  test_bias(machine);
  struct {
    DenseSizes sizes;
    long rank;
  } const CASES[] = {{{0, 5, 3}, 2},    {{1, 1, 1}, 1},     {{3, 4, 0}, 1},      {{1, 17, 9}, 3},   {{2, 3, 130}, 8},
                     {{20, 40, 1}, 1},
                     {{7, 48, 31}, 4},  {{8, 24, 16}, 8},   {{9, 49, 33}, 16},   {{64, 96, 20}, 8}, {{65, 50, 47}, 49},
                     {{130, 7, 11}, 5}, {{40, 33, 780}, 3}, {{13, 20, 1555}, 2}, {{200, 100, 64}, 8}};
  for (const auto& [sizes, rank] : CASES) {
    const std::string name = machine.name + " " + std::to_string(sizes.rows) + " x " + std::to_string(sizes.inputs) +
                             " -> " + std::to_string(sizes.outputs) + ", rank " + std::to_string(rank);
    test_weight(machine, sizes);
    for (bool has_bias : {false, true}) {
      test_sizes(name, machine.kernels->dense, nullptr, sizes, rank, has_bias, FLOAT_ERROR);
      const bool has_bf16 = machine.kernels->dense_bf16.forward != nullptr;
      if (has_bf16 && sizes.rows != 1 && sizes.inputs != 1) {  // a single number may be the small difference of large ones
        test_sizes(name + " bfloat16", machine.kernels->dense_bf16, machine.kernels->rounding.round_rows, sizes, rank,
                   has_bias, BRAIN_ERROR);
      }
    }
  }
}
