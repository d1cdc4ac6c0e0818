// Rotary position embedding (arXiv:2104.09864).
#pragma once

#include "kernels.hpp"
#include "loops.hpp"

namespace MINDPET_ISA {

// (first, second) of a head's pairs turns into (first cos - second sin, second cos + first sin).
inline void turn_halves(const float* x, const float* cosine, const float* sine, float direction, float* y, long pairs) {
  for_vectors(pairs, [&](long i, long count) {
    const Floats first = load_upto(x + i, count), second = load_upto(x + pairs + i, count);
    const Floats c = load_upto(cosine + i, count), s = load_upto(sine + i, count) * direction;
    store_upto(y + i, first * c - second * s, count);
    store_upto(y + pairs + i, second * c + first * s, count);
  });
}

inline void turn_neighbours(const float* x, const float* cosine, const float* sine, float direction, float* y,
                            long pairs) {
  for (long i = 0; i < pairs; ++i) {
    const float first = x[2 * i], second = x[2 * i + 1], s = sine[i] * direction;
    y[2 * i] = first * cosine[i] - second * s;
    y[2 * i + 1] = second * cosine[i] + first * s;
  }
}

// Rotates the first 2 * pairs numbers of each head and copies the others. `direction` 1 rotates, -1 rotates back,
// which is what a gradient needs.
inline void rotary(const mindpet::RotarySizes& sizes, const float* x, const float* cosine, const float* sine,
                   float direction, float* y) {
  const long width = sizes.heads * sizes.size;
  for_rows(sizes.batch * sizes.length, width, [&](long row) {
    const long angles = row / sizes.length * sizes.angles_batch + row % sizes.length * sizes.pairs;
    for (long head = 0; head < sizes.heads; ++head) {
      const float* from = x + row * width + head * sizes.size;
      float* to = y + row * width + head * sizes.size;
      const auto turn = sizes.interleaved ? turn_neighbours : turn_halves;
      turn(from, cosine + angles, sine + angles, direction, to, sizes.pairs);
      std::copy(from + 2 * sizes.pairs, from + sizes.size, to + 2 * sizes.pairs);
    }
  });
}

}  // namespace MINDPET_ISA
