#include <cmath>

#include "check.hpp"

namespace {

using mindpet::RotarySizes;

void test_sizes(const Machine& machine, const RotarySizes& s) {
  const auto count = static_cast<std::size_t>(s.batch * s.length * s.heads * s.size);
  const Numbers x = random_numbers(count, 1), dy = random_numbers(count, 2);
  const Numbers angles = random_numbers(static_cast<std::size_t>(s.batch * s.length * s.pairs), 3);
  Numbers cosine, sine;
  for (float angle : angles) {
    cosine.push_back(std::cos(angle));
    sine.push_back(std::sin(angle));
  }
  const auto moving = [&](const Exact& moved) { return rotate(s, moved, exact(cosine), exact(sine)); };
  const std::string name = machine.name + " rotary " + std::to_string(s.size) + (s.interleaved ? " interleaved" : "");
  check(name, {moving(exact(x)), slopes(moving, x, dy)}, FLOAT_ERROR, [&] {
    std::vector<Numbers> found = {blank(count), blank(count)};
    machine.kernels->rotary(s, x.data(), cosine.data(), sine.data(), 1.0f, found[0].data());
    machine.kernels->rotary(s, dy.data(), cosine.data(), sine.data(), -1.0f, found[1].data());
    return found;
  });
}

}  // namespace

Exact rotate(const RotarySizes& s, const Exact& x, const Exact& cosine, const Exact& sine) {
  Exact y = x;
  for (long b = 0; b < s.batch; ++b)
    for (long t = 0; t < s.length; ++t)
      for (long h = 0; h < s.heads; ++h)
        for (long i = 0; i < s.pairs; ++i) {
          const long start = ((b * s.length + t) * s.heads + h) * s.size;
          const long first = start + (s.interleaved ? 2 * i : i);
          const long second = start + (s.interleaved ? 2 * i + 1 : s.pairs + i);
          const auto angle = static_cast<std::size_t>(b * s.angles_batch + t * s.pairs + i);
          y[first] = x[first] * cosine[angle] - x[second] * sine[angle];
          y[second] = x[second] * cosine[angle] + x[first] * sine[angle];
        }
  return y;
}

void test_rotary(const Machine& machine) {
  for (bool interleaved : {false, true}) {
    test_sizes(machine, {1, 1, 1, 2, 1, 0, interleaved});
    test_sizes(machine, {2, 3, 2, 8, 4, 0, interleaved});
    test_sizes(machine, {2, 3, 2, 9, 3, 9, interleaved});  // a part of each head, angles for each example
    test_sizes(machine, {1, 5, 3, 40, 20, 0, interleaved});
    test_sizes(machine, {0, 5, 3, 40, 20, 0, interleaved});
  }
}
