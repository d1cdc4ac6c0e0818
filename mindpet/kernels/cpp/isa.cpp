// Compiled once for each instruction set: -DMINDPET_ISA=avx2 fills avx2_kernels, and so on.
#include "activations.hpp"
#include "attention.hpp"
#include "dense.hpp"
#include "kernels.hpp"
#include "norms.hpp"
#include "rotary.hpp"
#include "softmax.hpp"

namespace MINDPET_ISA {
namespace {

using mindpet::DenseKernels;
using mindpet::DenseSizes;

template <class Tiles>
constexpr DenseKernels dense_kernels() {
  return {
      [](const float* x, const float* weight, const float* bias, float* y, DenseSizes sizes) {
        dense<Tiles>(x, weight, bias, y, sizes.rows, sizes.outputs, sizes.inputs);
      },
      [](const float* dy, const float* weight, float* dx, DenseSizes sizes) {
        dense_back<Tiles>(dy, weight, dx, sizes.rows, sizes.outputs, sizes.inputs);
      },
      [](const float* x, const float* weight, const float* bias, const float* lora_a, const float* lora_b, float scale,
         float* y, float* hidden, DenseSizes sizes, long rank) {
        lora<Tiles>(x, weight, bias, lora_a, lora_b, scale, y, hidden, sizes.rows, sizes.outputs, sizes.inputs, rank);
      },
      [](const float* dy, const float* x, const float* hidden, const float* weight, const float* lora_a,
         const float* lora_b, float scale, float* dx, float* dlora_a, float* dlora_b, float* dhidden, DenseSizes sizes,
         long rank) {
        lora_back<Tiles>(dy, x, hidden, weight, lora_a, lora_b, scale, dx, dlora_a, dlora_b, dhidden, sizes.rows,
                         sizes.outputs, sizes.inputs, rank);
      },
  };
}

}  // namespace
}  // namespace MINDPET_ISA

#define NAME_OF(isa) isa##_kernels
#define TABLE_OF(isa) NAME_OF(isa)

namespace mindpet {

using namespace MINDPET_ISA;

extern const Kernels TABLE_OF(MINDPET_ISA) = {
    dense_kernels<FloatTiles>(),
#if defined(__AVX512BF16__)
    dense_kernels<PairTiles>(),
#else
    {},
#endif
    MINDPET_ISA::bias_back,
    [](const float* x, float* y, long count) { map(x, y, count, MINDPET_ISA::gelu); },
    [](const float* x, const float* dy, float* dx, long count) { map_back(x, dy, dx, count, gelu_slope); },
    [](const float* x, float* y, long count) { map(x, y, count, MINDPET_ISA::gelu_tanh); },
    [](const float* x, const float* dy, float* dx, long count) { map_back(x, dy, dx, count, gelu_tanh_slope); },
    MINDPET_ISA::silu_gate,
    MINDPET_ISA::silu_gate_back,
    MINDPET_ISA::layer_norm,
    MINDPET_ISA::layer_norm_back,
    MINDPET_ISA::rms_norm,
    MINDPET_ISA::rms_norm_back,
    MINDPET_ISA::rotary,
    MINDPET_ISA::cross_entropy,
    MINDPET_ISA::cross_entropy_back,
    MINDPET_ISA::attention,
    MINDPET_ISA::attention_back,
};

}  // namespace mindpet
