// What MindSpore calls: functions of the form that `ops.Custom(func_type="aot")` asks for. Inputs come first, then
// outputs, all contiguous and float32 unless said otherwise; the Python side has checked shapes. A function returns 0
// when all went well.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>

#include "block.hpp"
#include "kernels.hpp"
#include "threads.hpp"

namespace {

using mindpet::AttentionSizes;
using mindpet::DenseKernels;
using mindpet::DenseSizes;
using mindpet::KeepingKernels;
using mindpet::RotarySizes;

// To be raised, here and in switch.py, when a function takes other inputs or outputs than before.
constexpr int INTERFACE = 7;

// A call: what `in` and `out` count is the place among inputs and outputs together; a negative one counts from the end.
struct Call {
  int count;
  void** params;
  int* ranks;
  std::int64_t** shapes;

  const float* in(int i) const { return static_cast<const float*>(params[i]); }
  const std::int32_t* integers(int i) const { return static_cast<const std::int32_t*>(params[i]); }
  float* out(int i) const { return static_cast<float*>(params[i < 0 ? count + i : i]); }
  long axis(int i, int axis) const { return static_cast<long>(shapes[i][axis < 0 ? ranks[i] + axis : axis]); }
  long columns(int i) const { return axis(i, -1); }

  long rows(int i) const {
    long result = 1;
    for (int axis = 0; axis < ranks[i] - 1; ++axis) result *= static_cast<long>(shapes[i][axis]);
    return result;
  }

  long size(int i) const { return ranks[i] == 0 ? 1 : rows(i) * columns(i); }
};

template <class Body>
int guarded(const char* name, Body body) {
  try {
    body(*mindpet::kernels());
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "mindpet: the native %s failed: %s\n", name, error.what());
  } catch (...) {
    std::fprintf(stderr, "mindpet: the native %s failed\n", name);
  }
  return 1;
}

DenseSizes dense_sizes(const Call& call, int rows_of, int weight) {
  return {call.rows(rows_of), call.axis(weight, 0), call.axis(weight, 1)};
}

// x, weight[, bias] -> y
void dense(const Call& call, const DenseKernels& with, bool biased) {
  const float* bias = biased ? call.in(2) : nullptr;
  with.forward(call.in(0), call.in(1), bias, call.out(-1), dense_sizes(call, 0, 1));
}

// dy, weight -> dx
void dense_back(const Call& call, const DenseKernels& with) {
  with.backward(call.in(0), call.in(1), call.out(2), dense_sizes(call, 0, 1));
}

// x, weight, lora_a, lora_b, scale[, prepared x][, bias] -> y, hidden
void lora(const Call& call, const DenseKernels& with, bool biased, bool rounds) {
  const float* bias = biased ? call.in(rounds ? 6 : 5) : nullptr;
  with.lora_forward(call.in(0), call.in(rounds ? 5 : 0), call.in(1), bias, call.in(2), call.in(3), *call.in(4),
                    call.out(-2), call.out(-1), dense_sizes(call, 0, 1), call.axis(2, 0));
}

// dy, prepared x, hidden, weight, lora_a, lora_b, scale -> dx, dlora_a, dlora_b, dhidden
void lora_back(const Call& call, const DenseKernels& with) {
  with.lora_backward(call.in(0), call.in(1), call.in(2), call.in(3), call.in(4), call.in(5), *call.in(6), call.out(7),
                     call.out(8), call.out(9), call.out(10), dense_sizes(call, 0, 3), call.axis(4, 0));
}

// x, gamma, beta, epsilon[, residual] -> y, normalised, inverse
void layer_norm(const Call& call, const KeepingKernels& with, bool has_residual) {
  const float* residual = has_residual ? call.in(4) : nullptr;
  with.layer_norm(call.in(0), residual, call.in(1), call.in(2), *call.in(3), call.out(-3), call.out(-2), call.out(-1),
                  call.rows(0), call.columns(0));
}

// dy, gamma, normalised, inverse -> dx[, dgamma, dbeta]
void layer_norm_back(const Call& call, const KeepingKernels& with, bool trains) {
  with.layer_norm_back(call.in(0), call.in(1), call.in(2), call.in(3), call.out(4), trains ? call.out(5) : nullptr,
                       trains ? call.out(6) : nullptr, call.rows(0), call.columns(0));
}

// x, gamma, epsilon -> y, inverse
void rms_norm(const Call& call, const mindpet::Kernels& with) {
  with.rms_norm(call.in(0), nullptr, call.in(1), *call.in(2), call.out(3), nullptr, call.out(4), call.rows(0),
                call.columns(0));
}

// dy, x, gamma, inverse -> dx[, dgamma]
void rms_norm_back(const Call& call, const mindpet::Kernels& with, bool trains) {
  with.rms_norm_back(call.in(0), nullptr, call.in(1), call.in(2), call.in(3), call.out(4),
                     trains ? call.out(5) : nullptr, call.rows(0), call.columns(0));
}

// x, residual, gamma, epsilon -> y, x + residual, inverse
void add_rms_norm(const Call& call, const mindpet::Kernels& with) {
  with.rms_norm(call.in(0), call.in(1), call.in(2), *call.in(3), call.out(4), call.out(5), call.out(6), call.rows(0),
                call.columns(0));
}

// dy, dtotal, x + residual, gamma, inverse -> the gradient of the sum[, dgamma]
void add_rms_norm_back(const Call& call, const mindpet::Kernels& with, bool trains) {
  with.rms_norm_back(call.in(0), call.in(1), call.in(2), call.in(3), call.in(4), call.out(5),
                     trains ? call.out(6) : nullptr, call.rows(0), call.columns(0));
}

// The inputs begin with query (batch, queries, heads, size), key and value (batch, keys, key heads, size) and settings
// (causal or not, scale). A mask (batch or 1, 1, queries or 1, keys) follows where `masked`.
AttentionSizes attention_sizes(const Call& call, bool masked) {
  AttentionSizes sizes{};
  sizes.batch = call.axis(0, 0);
  sizes.queries = call.axis(0, 1);
  sizes.heads = call.axis(0, 2);
  sizes.size = call.axis(0, 3);
  sizes.keys = call.axis(1, 1);
  sizes.key_heads = call.axis(1, 2);
  sizes.causal = call.in(3)[0] != 0;
  sizes.scale = call.in(3)[1];
  if (masked) {
    sizes.mask = call.in(4);
    sizes.mask_query = call.axis(4, 2) == 1 ? 0 : sizes.keys;
    sizes.mask_batch = call.axis(4, 0) == 1 ? 0 : call.axis(4, 2) * sizes.keys;
  }
  return sizes;
}

// query, key, value, settings[, mask] -> output, kept[, and value, rounded]
void attention(const Call& call, const mindpet::Kernels& with, bool masked, bool rounds) {
  const int output = masked ? 5 : 4;
  with.attention(attention_sizes(call, masked), call.in(0), call.in(1), call.in(2), call.out(output),
                 call.out(output + 1));
  if (rounds) with.rounding.keep(call.in(2), call.size(2), call.out(output + 2));
}

// query, key, value, settings[, mask], kept, doutput -> dquery, dkey, dvalue
void attention_back(const Call& call, const KeepingKernels& with, bool masked) {
  const int kept = masked ? 5 : 4;
  with.attention_back(attention_sizes(call, masked), call.in(0), call.in(1), call.in(2), call.in(kept),
                      call.in(kept + 1), call.out(-3), call.out(-2), call.out(-1));
}

// gate, x -> y, and gate and x, rounded
void silu_gate_and_round(const Call& call, const mindpet::Kernels& with) {
  with.silu_gate(call.in(0), call.in(1), call.out(2), call.size(0));
  for (int i = 0; i < 2; ++i) with.rounding.keep(call.in(i), call.size(i), call.out(3 + i));
}

// gate, x, dy -> dgate, dx
void silu_gate_back(const Call& call, const KeepingKernels& with) {
  with.silu_gate_back(call.in(0), call.in(1), call.in(2), call.out(3), call.out(4), call.size(2));
}

// x (batch, length, heads, size), cosine and sine (batch or 1, length, pairs), interleaved -> y
void rotary(const Call& call, const mindpet::Kernels& with, float direction) {
  RotarySizes sizes{};
  sizes.batch = call.axis(0, 0);
  sizes.length = call.axis(0, 1);
  sizes.heads = call.axis(0, 2);
  sizes.size = call.axis(0, 3);
  sizes.pairs = call.axis(1, 2);
  sizes.angles_batch = call.axis(1, 0) == 1 ? 0 : sizes.length * sizes.pairs;
  sizes.interleaved = *call.in(3) != 0;
  with.rotary(sizes, call.in(0), call.in(1), call.in(2), direction, call.out(4));
}

// Returns the block of a number, where the caller's fingerprint shows that it means the one of this process.
const mindpet::Block& block_of(int number, const float* fingerprint) {
  const mindpet::Block& block = mindpet::block(number);
  if (block.fingerprint != *fingerprint) throw std::invalid_argument("the graph was compiled for another block.");
  return block;
}

// fingerprint, inputs -> y, tape, room
void block(const Call& call, const mindpet::Kernels& with, int number) {
  const mindpet::Block& block = block_of(number, call.in(0));
  run_forward(block, {block, call.ranks + 1, call.shapes + 1}, &with,
              reinterpret_cast<const float* const*>(call.params + 1), call.out(-3), call.out(-2), call.out(-1));
}

// fingerprint, dy, tape, inputs -> gradients, room
void block_back(const Call& call, const mindpet::Kernels& with, int number) {
  const mindpet::Block& block = block_of(number, call.in(0));
  run_backward(block, {block, call.ranks + 3, call.shapes + 3}, &with,
               reinterpret_cast<const float* const*>(call.params + 3), call.in(1), call.in(2),
               reinterpret_cast<float* const*>(call.params + 3 + block.inputs), call.out(-1));
}

}  // namespace

#define MINDPET_EXPORT extern "C" __attribute__((visibility("default")))

#define MINDPET_OPERATION(name, ...)                                                                                \
  MINDPET_EXPORT int mindpet_##name(int count, void** params, int* ranks, std::int64_t** shapes, const char**, void*, \
                                    void*) {                                                                        \
    const Call call{count, params, ranks, shapes};                                                                  \
    return guarded(#name, [&](const mindpet::Kernels& with) { __VA_ARGS__; });                                      \
  }

// A name for each set of inputs, and for each set of gradients: MindSpore takes operations of one name for one
// operation, with one gradient. A bias that is trained is a `shift`.
MINDPET_OPERATION(dense, dense(call, with.dense, false))
MINDPET_OPERATION(dense_biased, dense(call, with.dense, true))
MINDPET_OPERATION(dense_bf16, dense(call, with.dense_bf16, false))
MINDPET_OPERATION(dense_biased_bf16, dense(call, with.dense_bf16, true))
MINDPET_OPERATION(dense_shifted, dense(call, with.dense, true))
MINDPET_OPERATION(dense_shifted_bf16, dense(call, with.dense_bf16, true))
MINDPET_OPERATION(dense_trained, dense(call, with.dense, false))
MINDPET_OPERATION(dense_trained_biased, dense(call, with.dense, true))
MINDPET_OPERATION(dense_back, dense_back(call, with.dense))
MINDPET_OPERATION(dense_back_bf16, dense_back(call, with.dense_bf16))
MINDPET_OPERATION(lora, lora(call, with.dense, false, false))
MINDPET_OPERATION(lora_biased, lora(call, with.dense, true, false))
MINDPET_OPERATION(lora_bf16, lora(call, with.dense_bf16, false, true))
MINDPET_OPERATION(lora_biased_bf16, lora(call, with.dense_bf16, true, true))
MINDPET_OPERATION(lora_shifted, lora(call, with.dense, true, false))
MINDPET_OPERATION(lora_shifted_bf16, lora(call, with.dense_bf16, true, true))
MINDPET_OPERATION(lora_back, lora_back(call, with.dense))
MINDPET_OPERATION(lora_back_bf16, lora_back(call, with.dense_bf16))
MINDPET_OPERATION(layer_norm, layer_norm(call, with.keeping, false))
MINDPET_OPERATION(layer_norm_bf16, layer_norm(call, with.keeping_bf16, false))
MINDPET_OPERATION(layer_norm_residual, layer_norm(call, with.keeping, true))
MINDPET_OPERATION(layer_norm_residual_bf16, layer_norm(call, with.keeping_bf16, true))
MINDPET_OPERATION(layer_norm_frozen, layer_norm(call, with.keeping, false))
MINDPET_OPERATION(layer_norm_frozen_bf16, layer_norm(call, with.keeping_bf16, false))
MINDPET_OPERATION(layer_norm_frozen_residual, layer_norm(call, with.keeping, true))
MINDPET_OPERATION(layer_norm_frozen_residual_bf16, layer_norm(call, with.keeping_bf16, true))
MINDPET_OPERATION(layer_norm_back, layer_norm_back(call, with.keeping, true))
MINDPET_OPERATION(layer_norm_back_bf16, layer_norm_back(call, with.keeping_bf16, true))
MINDPET_OPERATION(layer_norm_frozen_back, layer_norm_back(call, with.keeping, false))
MINDPET_OPERATION(layer_norm_frozen_back_bf16, layer_norm_back(call, with.keeping_bf16, false))
MINDPET_OPERATION(rms_norm, rms_norm(call, with))
MINDPET_OPERATION(rms_norm_frozen, rms_norm(call, with))
MINDPET_OPERATION(rms_norm_back, rms_norm_back(call, with, true))
MINDPET_OPERATION(rms_norm_frozen_back, rms_norm_back(call, with, false))
MINDPET_OPERATION(add_rms_norm, add_rms_norm(call, with))
MINDPET_OPERATION(add_rms_norm_frozen, add_rms_norm(call, with))
MINDPET_OPERATION(add_rms_norm_back, add_rms_norm_back(call, with, true))
MINDPET_OPERATION(add_rms_norm_frozen_back, add_rms_norm_back(call, with, false))
MINDPET_OPERATION(attention, attention(call, with, false, false))
MINDPET_OPERATION(attention_bf16, attention(call, with, false, true))
MINDPET_OPERATION(attention_masked, attention(call, with, true, false))
MINDPET_OPERATION(attention_masked_bf16, attention(call, with, true, true))
MINDPET_OPERATION(attention_back, attention_back(call, with.keeping, false))
MINDPET_OPERATION(attention_back_bf16, attention_back(call, with.keeping_bf16, false))
MINDPET_OPERATION(attention_back_masked, attention_back(call, with.keeping, true))
MINDPET_OPERATION(attention_back_masked_bf16, attention_back(call, with.keeping_bf16, true))
MINDPET_OPERATION(rotary, rotary(call, with, 1.0f))
MINDPET_OPERATION(rotary_back, rotary(call, with, -1.0f))

// dy, x -> dweight
MINDPET_OPERATION(weight_back, with.weight_back(call.in(0), call.in(1), call.out(2), call.rows(0), call.columns(0),
                                                call.columns(1)))

// dy -> dbias
MINDPET_OPERATION(bias_back, with.bias_back(call.in(0), call.out(1), call.rows(0), call.columns(0)))

// x -> pairs, the form in which rows are multiplied in bfloat16
MINDPET_OPERATION(round_rows, with.rounding.round_rows(call.in(0), call.out(1), call.rows(0), call.columns(0)))

// x -> y[, and x, rounded], and x, dy -> dx
MINDPET_OPERATION(gelu, with.gelu(call.in(0), call.out(1), call.size(0)))
MINDPET_OPERATION(gelu_bf16, with.rounding.gelu(call.in(0), call.out(1), call.out(2), call.size(0)))
MINDPET_OPERATION(gelu_back, with.keeping.gelu_back(call.in(0), call.in(1), call.out(2), call.size(1)))
MINDPET_OPERATION(gelu_back_bf16, with.keeping_bf16.gelu_back(call.in(0), call.in(1), call.out(2), call.size(1)))
MINDPET_OPERATION(gelu_tanh, with.gelu_tanh(call.in(0), call.out(1), call.size(0)))
MINDPET_OPERATION(gelu_tanh_bf16, with.rounding.gelu_tanh(call.in(0), call.out(1), call.out(2), call.size(0)))
MINDPET_OPERATION(gelu_tanh_back, with.keeping.gelu_tanh_back(call.in(0), call.in(1), call.out(2), call.size(1)))
MINDPET_OPERATION(gelu_tanh_back_bf16,
                  with.keeping_bf16.gelu_tanh_back(call.in(0), call.in(1), call.out(2), call.size(1)))

// gate, x -> y
MINDPET_OPERATION(silu_gate, with.silu_gate(call.in(0), call.in(1), call.out(2), call.size(0)))
MINDPET_OPERATION(silu_gate_bf16, silu_gate_and_round(call, with))
MINDPET_OPERATION(silu_gate_back, silu_gate_back(call, with.keeping))
MINDPET_OPERATION(silu_gate_back_bf16, silu_gate_back(call, with.keeping_bf16))

// logits, labels (int32) -> losses, kept, and dlosses, logits, labels (int32), kept -> dlogits
MINDPET_OPERATION(cross_entropy, with.cross_entropy(call.in(0), call.integers(1), call.out(2), call.out(3),
                                                    call.rows(0), call.columns(0)))
MINDPET_OPERATION(cross_entropy_back,
                  with.cross_entropy_back(call.in(0), call.in(1), call.integers(2), call.in(3), call.out(4),
                                          call.rows(1), call.columns(1)))

#define MINDPET_BLOCK(number)                                 \
  MINDPET_OPERATION(block_##number, block(call, with, number)) \
  MINDPET_OPERATION(block_back_##number, block_back(call, with, number))
MINDPET_FOR_BLOCKS(MINDPET_BLOCK)

// For the Python side, through ctypes.
MINDPET_EXPORT float mindpet_define_block(int number, const float* numbers, long count) {
  try {
    return mindpet::define_block(number, numbers, count);
  } catch (const std::exception&) {
    return -1;
  }
}

MINDPET_EXPORT int mindpet_interface() { return INTERFACE; }

MINDPET_EXPORT int mindpet_level() {  // 0: none, 1: AVX2, 2: AVX-512, 3: with bfloat16 products
  const mindpet::Kernels* best = mindpet::kernels();
  if (best == nullptr) return 0;
  return best == &mindpet::avx512_bf16_kernels ? 3 : best == &mindpet::avx512_kernels ? 2 : 1;
}

MINDPET_EXPORT void mindpet_set_threads(int count) { mindpet::set_threads(count); }

MINDPET_EXPORT int mindpet_threads() { return mindpet::threads(); }
