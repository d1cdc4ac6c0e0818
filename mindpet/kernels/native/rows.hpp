// Operations on rows: activations and normalisation, forward and backward.
#pragma once

#include <cmath>

#include "gemm.hpp"

namespace MINDPET_ISA {

constexpr long CHUNK = 16384;  // floats in a task of an elementwise operation

template <class Step>
inline void for_elements(long count, Step step) {
  mindpet::parallel_for((count + CHUNK - 1) / CHUNK, [&](long task) {
    const long first = task * CHUNK;
    for_vectors(std::min(CHUNK, count - first), [&](long i, long size) { step(first + i, size); });
  });
}

template <class Step>
inline void for_rows(long rows, long columns, Step step) {
  const long together = std::max(1L, CHUNK / std::max(1L, columns));
  mindpet::parallel_for((rows + together - 1) / together, [&](long task) {
    const long last = std::min(rows, (task + 1) * together);
    for (long row = task * together; row < last; ++row) step(row);
  });
}

inline Floats gelu(Floats x) {
  const Floats gauss = exponential(-0.5f * x * x);
  return 0.5f * x * (1.0f + error_function(x * 0.70710678f, gauss));
}

inline Floats gelu_slope(Floats x) {
  const Floats gauss = exponential(-0.5f * x * x);
  return 0.5f * (1.0f + error_function(x * 0.70710678f, gauss)) + 0.39894228f * x * gauss;
}

inline Floats sigmoid(Floats x) { return 1.0f / (1.0f + exponential(-x)); }

constexpr float TWO_SQRT_TWO_OVER_PI = 1.59576912f;

inline Floats gelu_tanh(Floats x) { return x * sigmoid(TWO_SQRT_TWO_OVER_PI * (x + 0.044715f * x * x * x)); }

inline Floats gelu_tanh_slope(Floats x) {
  const Floats gate = sigmoid(TWO_SQRT_TWO_OVER_PI * (x + 0.044715f * x * x * x));
  return gate + x * gate * (1.0f - gate) * TWO_SQRT_TWO_OVER_PI * (1.0f + 0.134145f * x * x);
}

template <class Function>
inline void map(const float* x, float* y, long count, Function function) {
  for_elements(count, [&](long i, long size) { store_upto(y + i, function(load_upto(x + i, size)), size); });
}

template <class Function>
inline void map_slope(const float* x, const float* dy, float* dx, long count, Function slope) {
  for_elements(count, [&](long i, long size) {
    store_upto(dx + i, load_upto(dy + i, size) * slope(load_upto(x + i, size)), size);
  });
}

// y = silu(gate) * x with silu(z) = z sigmoid(z), the gate of Llama's feed-forward.
inline void silu_gate(const float* gate, const float* x, float* y, long count) {
  for_elements(count, [&](long i, long size) {
    const Floats z = load_upto(gate + i, size);
    store_upto(y + i, z * sigmoid(z) * load_upto(x + i, size), size);
  });
}

inline void silu_gate_slope(const float* gate, const float* x, const float* dy, float* dgate, float* dx, long count) {
  for_elements(count, [&](long i, long size) {
    const Floats z = load_upto(gate + i, size), grad = load_upto(dy + i, size), s = sigmoid(z);
    store_upto(dx + i, grad * z * s, size);
    store_upto(dgate + i, grad * load_upto(x + i, size) * s * (1.0f + z * (1.0f - s)), size);
  });
}

// y = (x - mean) / sqrt(variance + epsilon) * gamma + beta for each row of x + residual (a null residual is none).
// Kept for the gradient: normalised = (x - mean) / sqrt(variance + epsilon), and inverse = 1 / sqrt(...) of each row.
inline void layer_norm(const float* x, const float* residual, const float* gamma, const float* beta, float epsilon,
                       float* y, float* normalised, float* inverse, long rows, long columns) {
  for_rows(rows, columns, [&](long row) {
    const float* from = x + row * columns;
    const float* other = residual == nullptr ? nullptr : residual + row * columns;
    float* kept = normalised + row * columns;
    Floats total = {};
    for_vectors(columns, [&](long i, long size) {
      Floats value = load_upto(from + i, size);
      if (other != nullptr) value += load_upto(other + i, size);
      store_upto(kept + i, value, size);
      total += value;
    });
    const float mean = sum(total) / static_cast<float>(columns);
    Floats squares = {};
    for_vectors(columns, [&](long i, long size) {
      const Floats centred = load_upto(kept + i, size) - mean;
      squares += size == WIDTH ? centred * centred : first_of(centred * centred, size);
    });
    const float scale = 1.0f / std::sqrt(sum(squares) / static_cast<float>(columns) + epsilon);
    inverse[row] = scale;
    for_vectors(columns, [&](long i, long size) {
      const Floats unit = (load_upto(kept + i, size) - mean) * scale;
      store_upto(kept + i, unit, size);
      store_upto(y + row * columns + i, unit * load_upto(gamma + i, size) + load_upto(beta + i, size), size);
    });
  });
}

// dx = (g - mean(g) - n mean(g n)) * inverse with g = dy gamma and n = normalised: the same for x and the residual.
inline void layer_norm_slope(const float* dy, const float* gamma, const float* normalised, const float* inverse,
                             float* dx, long rows, long columns) {
  for_rows(rows, columns, [&](long row) {
    const float* grad = dy + row * columns;
    const float* unit = normalised + row * columns;
    Floats total = {}, product = {};
    for_vectors(columns, [&](long i, long size) {
      const Floats g = load_upto(grad + i, size) * load_upto(gamma + i, size);
      total += g;
      product += g * load_upto(unit + i, size);
    });
    const float mean = sum(total) / static_cast<float>(columns);
    const float slope = sum(product) / static_cast<float>(columns);
    for_vectors(columns, [&](long i, long size) {
      const Floats g = load_upto(grad + i, size) * load_upto(gamma + i, size);
      store_upto(dx + row * columns + i, (g - mean - load_upto(unit + i, size) * slope) * inverse[row], size);
    });
  });
}

// y = x / sqrt(mean(x^2) + epsilon) * gamma, of x + residual; the sum is kept in `total` where there is a residual.
inline void rms_norm(const float* x, const float* gamma, float epsilon, float* y, float* inverse, long rows,
                     long columns) {
  for_rows(rows, columns, [&](long row) {
    const float* from = x + row * columns;
    Floats squares = {};
    for_vectors(columns, [&](long i, long size) {
      const Floats value = load_upto(from + i, size);
      squares += value * value;
    });
    const float scale = 1.0f / std::sqrt(sum(squares) / static_cast<float>(columns) + epsilon);
    inverse[row] = scale;
    for_vectors(columns, [&](long i, long size) {
      store_upto(y + row * columns + i, load_upto(from + i, size) * scale * load_upto(gamma + i, size), size);
    });
  });
}

// dx = inverse (g - x inverse^2 mean(g x)) with g = dy gamma.
inline void rms_norm_slope(const float* dy, const float* x, const float* gamma, const float* inverse, float* dx,
                           long rows, long columns) {
  for_rows(rows, columns, [&](long row) {
    const float* grad = dy + row * columns;
    const float* from = x + row * columns;
    Floats product = {};
    for_vectors(columns, [&](long i, long size) {
      product += load_upto(grad + i, size) * load_upto(gamma + i, size) * load_upto(from + i, size);
    });
    const float scale = inverse[row];
    const float slope = sum(product) / static_cast<float>(columns) * scale * scale;
    for_vectors(columns, [&](long i, long size) {
      const Floats g = load_upto(grad + i, size) * load_upto(gamma + i, size);
      store_upto(dx + row * columns + i, (g - load_upto(from + i, size) * slope) * scale, size);
    });
  });
}

}  // namespace MINDPET_ISA
