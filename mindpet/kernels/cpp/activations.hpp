// Activations, forward and backward.
#pragma once

#include "kept.hpp"

namespace MINDPET_ISA {

// What `map` and its like are given are objects of types of their own: a pointer to a function they would call for each
// vector, which takes half as long again.
constexpr auto gelu = [](Floats x) { return x * normal_distribution(x, exponential(-0.5f * x * x)); };

constexpr auto gelu_slope = [](Floats x) {
  const Floats gauss = exponential(-0.5f * x * x);
  return normal_distribution(x, gauss) + 0.39894228f * x * gauss;
};

MINDPET_INLINE Floats sigmoid(Floats x) { return 1.0f / (1.0f + exponential(-x)); }

constexpr float TWO_SQRT_TWO_OVER_PI = 1.59576912f;

constexpr auto gelu_tanh = [](Floats x) {
  return x * sigmoid(TWO_SQRT_TWO_OVER_PI * (x + 0.044715f * x * x * x));
};

constexpr auto gelu_tanh_slope = [](Floats x) {
  const Floats gate = sigmoid(TWO_SQRT_TWO_OVER_PI * (x + 0.044715f * x * x * x));
  return gate + x * gate * (1.0f - gate) * TWO_SQRT_TWO_OVER_PI * (1.0f + 0.134145f * x * x);
};

template <class Function>
inline void map(const float* x, float* y, long count, Function function) {
  for_elements(count, [&](long i, long size) { store_upto(y + i, function(load_upto(x + i, size)), size); });
}

// As `map`, and keeps x.
template <class Kept, class Function>
inline void map_and_keep(const float* x, float* y, void* kept, long count, Function function) {
  auto* to = static_cast<typename Kept::Element*>(kept);
  for_elements(count, [&](long i, long size) {
    const Floats value = load_upto(x + i, size);
    store_upto(y + i, function(value), size);
    Kept::store(to + i, value, size);
  });
}

template <class Kept, class Function>
inline void map_back(const void* kept, const float* dy, float* dx, long count, Function slope) {
  const auto* x = static_cast<const typename Kept::Element*>(kept);
  for_elements(count, [&](long i, long size) {
    store_upto(dx + i, load_upto(dy + i, size) * slope(Kept::load(x + i, size)), size);
  });
}

// y = silu(gate) * x with silu(z) = z sigmoid(z), the gate of Llama's feed-forward.
inline void silu_gate(const float* gate, const float* x, float* y, long count) {
  for_elements(count, [&](long i, long size) {
    const Floats z = load_upto(gate + i, size);
    store_upto(y + i, z * sigmoid(z) * load_upto(x + i, size), size);
  });
}

template <class Kept>
inline void silu_gate_back(const void* kept_gate, const void* kept_x, const float* dy, float* dgate, float* dx,
                           long count) {
  const auto* gate = static_cast<const typename Kept::Element*>(kept_gate);
  const auto* x = static_cast<const typename Kept::Element*>(kept_x);
  for_elements(count, [&](long i, long size) {
    const Floats z = Kept::load(gate + i, size), grad = load_upto(dy + i, size), s = sigmoid(z);
    store_upto(dx + i, grad * z * s, size);
    store_upto(dgate + i, grad * Kept::load(x + i, size) * s * (1.0f + z * (1.0f - s)), size);
  });
}

}  // namespace MINDPET_ISA
