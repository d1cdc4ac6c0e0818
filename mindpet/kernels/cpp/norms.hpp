// Normalisation of rows, forward and backward.
#pragma once

#include <cmath>

#include "kept.hpp"

namespace MINDPET_ISA {

// y = (x - mean) / sqrt(variance + epsilon) * gamma + beta for each row of x + residual (a null residual is none).
// Kept for the gradient: normalised = (x - mean) / sqrt(variance + epsilon), and inverse = 1 / sqrt(...) of each row.
template <class Kept>
inline void layer_norm(const float* x, const float* residual, const float* gamma, const float* beta, float epsilon,
                       float* y, void* normalised, float* inverse, long rows, long columns) {
  for_rows(rows, columns, [&](long row) {
    const float* from = x + row * columns;
    const float* other = residual == nullptr ? nullptr : residual + row * columns;
    float* to = y + row * columns;  // holds x + residual at first
    auto* kept = static_cast<typename Kept::Element*>(normalised) + row * columns;
    Floats total = {};
    for_vectors(columns, [&](long i, long size) {
      Floats value = load_upto(from + i, size);
      if (other != nullptr) value += load_upto(other + i, size);
      store_upto(to + i, value, size);
      total += value;
    });
    const float mean = sum(total) / static_cast<float>(columns);
    Floats squares = {};
    for_vectors(columns, [&](long i, long size) {
      const Floats centred = load_upto(to + i, size) - mean;
      squares += size == WIDTH ? centred * centred : first_of(centred * centred, size, 0.0f);
    });
    const float scale = 1.0f / std::sqrt(sum(squares) / static_cast<float>(columns) + epsilon);
    inverse[row] = scale;
    for_vectors(columns, [&](long i, long size) {
      const Floats unit = (load_upto(to + i, size) - mean) * scale;
      Kept::store(kept + i, unit, size);
      store_upto(to + i, unit * load_upto(gamma + i, size) + load_upto(beta + i, size), size);
    });
  });
}

// dx = (g - mean(g) - n mean(g n)) * inverse with g = dy gamma and n = normalised: the same for x and the residual.
// dgamma = sum(dy n) and dbeta = sum(dy) over the rows, unless they are null.
template <class Kept>
inline void layer_norm_back(const float* dy, const float* gamma, const void* normalised, const float* inverse,
                            float* dx, float* dgamma, float* dbeta, long rows, long columns) {
  const auto step = [&](long row, float* sums) {
    const float* grad = dy + row * columns;
    const auto* unit = static_cast<const typename Kept::Element*>(normalised) + row * columns;
    Floats total = {}, product = {};
    for_vectors(columns, [&](long i, long size) {
      const Floats outer = load_upto(grad + i, size), n = Kept::load(unit + i, size);
      const Floats g = outer * load_upto(gamma + i, size);
      total += g;
      product += g * n;
      if (sums == nullptr) return;
      add_to(sums + i, outer * n, size);
      add_to(sums + columns + i, outer, size);
    });
    const float mean = sum(total) / static_cast<float>(columns);
    const float slope = sum(product) / static_cast<float>(columns);
    for_vectors(columns, [&](long i, long size) {
      const Floats g = load_upto(grad + i, size) * load_upto(gamma + i, size);
      store_upto(dx + row * columns + i, (g - mean - Kept::load(unit + i, size) * slope) * inverse[row], size);
    });
  };
  if (dgamma == nullptr) {
    for_rows(rows, columns, [&](long row) { step(row, nullptr); });
  } else {
    for_rows_with_sums(rows, columns, {dgamma, dbeta}, step);
  }
}

// y = s / sqrt(mean(s^2) + epsilon) * gamma (arXiv:1910.07467) for each row of s = x + residual, which `total` takes;
// both are null where s = x. inverse = 1 / sqrt(...) of each row is kept.
inline void rms_norm(const float* x, const float* residual, const float* gamma, float epsilon, float* y, float* total,
                     float* inverse, long rows, long columns) {
  for_rows(rows, columns, [&](long row) {
    const float* from = x + row * columns;
    Floats squares = {};
    if (residual == nullptr) {
      for_vectors(columns, [&](long i, long size) {
        const Floats value = load_upto(from + i, size);
        squares += value * value;
      });
    } else {
      float* to = total + row * columns;
      for_vectors(columns, [&](long i, long size) {
        const Floats value = load_upto(from + i, size) + load_upto(residual + row * columns + i, size);
        store_upto(to + i, value, size);
        squares += value * value;
      });
      from = to;
    }
    const float scale = 1.0f / std::sqrt(sum(squares) / static_cast<float>(columns) + epsilon);
    inverse[row] = scale;
    for_vectors(columns, [&](long i, long size) {
      store_upto(y + row * columns + i, load_upto(from + i, size) * scale * load_upto(gamma + i, size), size);
    });
  });
}

// ds = inverse (g - s inverse^2 mean(g s)) + dtotal with g = dy gamma: the same for x and the residual; a null dtotal
// is none. dgamma = sum(dy s inverse) over the rows, unless it is null.
inline void rms_norm_back(const float* dy, const float* dtotal, const float* s, const float* gamma,
                          const float* inverse, float* ds, float* dgamma, long rows, long columns) {
  const auto step = [&](long row, float* sums) {
    const float* grad = dy + row * columns;
    const float* from = s + row * columns;
    const float* beside = dtotal == nullptr ? nullptr : dtotal + row * columns;
    const float scale = inverse[row];
    Floats product = {};
    for_vectors(columns, [&](long i, long size) {
      const Floats along = load_upto(grad + i, size) * load_upto(from + i, size);
      product += along * load_upto(gamma + i, size);
      if (sums != nullptr) add_to(sums + i, along * scale, size);
    });
    const float slope = sum(product) / static_cast<float>(columns) * scale * scale;
    for_vectors(columns, [&](long i, long size) {
      const Floats g = load_upto(grad + i, size) * load_upto(gamma + i, size);
      Floats by_sum = (g - load_upto(from + i, size) * slope) * scale;
      if (beside != nullptr) by_sum += load_upto(beside + i, size);
      store_upto(ds + row * columns + i, by_sum, size);
    });
  };
  if (dgamma == nullptr) {
    for_rows(rows, columns, [&](long row) { step(row, nullptr); });
  } else {
    for_rows_with_sums(rows, columns, {dgamma}, step);
  }
}

}  // namespace MINDPET_ISA
