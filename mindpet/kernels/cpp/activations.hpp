// Activations, forward and backward.
#pragma once

#include "loops.hpp"

namespace MINDPET_ISA {

inline Floats gelu(Floats x) { return x * normal_distribution(x, exponential(-0.5f * x * x)); }

inline Floats gelu_slope(Floats x) {
  const Floats gauss = exponential(-0.5f * x * x);
  return normal_distribution(x, gauss) + 0.39894228f * x * gauss;
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
inline void map_back(const float* x, const float* dy, float* dx, long count, Function slope) {
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

inline void silu_gate_back(const float* gate, const float* x, const float* dy, float* dgate, float* dx, long count) {
  for_elements(count, [&](long i, long size) {
    const Floats z = load_upto(gate + i, size), grad = load_upto(dy + i, size), s = sigmoid(z);
    store_upto(dx + i, grad * z * s, size);
    store_upto(dgate + i, grad * load_upto(x + i, size) * s * (1.0f + z * (1.0f - s)), size);
  });
}

}  // namespace MINDPET_ISA
