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
using mindpet::KeepingKernels;
using mindpet::RoundingKernels;

template <class Tiles>
constexpr DenseKernels dense_kernels() {
  return {
      [](const float* x, const float* weight, const float* bias, float* y, DenseSizes sizes) {
        dense<Tiles>(x, weight, bias, y, sizes.rows, sizes.outputs, sizes.inputs);
      },
      [](const float* dy, const float* weight, float* dx, DenseSizes sizes) {
        dense_back<Tiles>(dy, weight, dx, sizes.rows, sizes.outputs, sizes.inputs);
      },
      [](const float* x, const void* prepared, const float* weight, const float* bias, const float* lora_a,
         const float* lora_b, float scale, float* y, float* hidden, DenseSizes sizes, long rank) {
        lora<Tiles>(x, prepared, weight, bias, lora_a, lora_b, scale, y, hidden, sizes.rows, sizes.outputs,
                    sizes.inputs, rank);
      },
      [](const float* dy, const void* prepared, const float* hidden, const float* weight, const float* lora_a,
         const float* lora_b, float scale, float* dx, float* dlora_a, float* dlora_b, float* dhidden, DenseSizes sizes,
         long rank) {
        lora_back<Tiles>(dy, prepared, hidden, weight, lora_a, lora_b, scale, dx, dlora_a, dlora_b, dhidden, sizes.rows,
                         sizes.outputs, sizes.inputs, rank);
      },
  };
}

template <class Kept>
constexpr KeepingKernels keeping_kernels() {
  return {
      layer_norm<Kept>,
      layer_norm_back<Kept>,
      [](const void* x, const float* dy, float* dx, long count) { map_back<Kept>(x, dy, dx, count, gelu_slope); },
      [](const void* x, const float* dy, float* dx, long count) { map_back<Kept>(x, dy, dx, count, gelu_tanh_slope); },
      silu_gate_back<Kept>,
      attention_back<Kept>,
  };
}

#if defined(__AVX512BF16__)
constexpr RoundingKernels rounding_kernels() {
  return {
      round_rows,
      keep_all<KeptHalves>,
      [](const float* x, float* y, void* kept, long count) { map_and_keep<KeptHalves>(x, y, kept, count, gelu); },
      [](const float* x, float* y, void* kept, long count) { map_and_keep<KeptHalves>(x, y, kept, count, gelu_tanh); },
  };
}
#endif

}  // namespace
}  // namespace MINDPET_ISA

#define NAME_OF(isa) isa##_kernels
#define TABLE_OF(isa) NAME_OF(isa)

namespace mindpet {

using namespace MINDPET_ISA;

extern const Kernels TABLE_OF(MINDPET_ISA) = {
    dense_kernels<FloatTiles>(),
    keeping_kernels<KeptFloats>(),
#if defined(__AVX512BF16__)
    dense_kernels<PairTiles>(),
    keeping_kernels<KeptHalves>(),
    rounding_kernels(),
#else
    {},
    {},
    {},
#endif
    MINDPET_ISA::weight_back,
    MINDPET_ISA::bias_back,
    MINDPET_ISA::add,
    [](const float* x, float* y, long count) { map(x, y, count, MINDPET_ISA::gelu); },
    [](const float* x, float* y, long count) { map(x, y, count, MINDPET_ISA::gelu_tanh); },
    MINDPET_ISA::silu_gate,
    MINDPET_ISA::rms_norm,
    MINDPET_ISA::rms_norm_back,
    MINDPET_ISA::rotary,
    MINDPET_ISA::cross_entropy,
    MINDPET_ISA::cross_entropy_back,
    MINDPET_ISA::attention,
};

}  // namespace mindpet
