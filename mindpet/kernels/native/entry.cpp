// What MindSpore calls: functions of the form that `ops.Custom(func_type="aot")` asks for. Inputs come first, then
// outputs, all contiguous float32; the Python side has checked shapes. A function returns 0 when all went well.
#include <algorithm>
#include <cstdint>
#include <exception>
#include <cstdio>

#include "kernels.hpp"
#include "threads.hpp"

namespace {

using mindpet::AttentionSizes;
using mindpet::DenseKernels;
using mindpet::DenseSizes;

struct Call {
  int count;
  void** params;
  int* ranks;
  std::int64_t** shapes;

  const float* in(int i) const { return static_cast<const float*>(params[i]); }
  float* out(int i) const { return static_cast<float*>(params[i]); }
  long axis(int i, int axis) const { return static_cast<long>(shapes[i][axis < 0 ? ranks[i] + axis : axis]); }

  long size(int i) const {
    long result = 1;
    for (int axis = 0; axis < ranks[i]; ++axis) result *= static_cast<long>(shapes[i][axis]);
    return result;
  }

  long rows(int i) const { return size(i) / std::max(1L, axis(i, -1)); }
};

template <class Body>
int guarded(const char* name, Body body) {
  try {
    body(*mindpet::kernels());
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "mindpet: the native %s failed: %s\n", name, error.what());
    return 1;
  }
}

DenseSizes dense_sizes(const Call& call, int rows_of, int weight) {
  return {call.rows(rows_of), call.axis(weight, 0), call.axis(weight, 1)};
}

void dense(const Call& call, const DenseKernels& with) {  // x, weight[, bias] -> y
  const bool has_bias = call.count == 4;
  with.forward(call.in(0), call.in(1), has_bias ? call.in(2) : nullptr, call.out(call.count - 1),
               dense_sizes(call, 0, 1));
}

void dense_back(const Call& call, const DenseKernels& with) {  // dy, weight -> dx
  with.backward(call.in(0), call.in(1), call.out(2), dense_sizes(call, 0, 1));
}

void lora(const Call& call, const DenseKernels& with) {  // x, weight, lora_a, lora_b, scale[, bias] -> y, hidden
  const bool has_bias = call.count == 8;
  with.lora_forward(call.in(0), call.in(1), has_bias ? call.in(5) : nullptr, call.in(2), call.in(3), *call.in(4),
                    call.out(call.count - 2), call.out(call.count - 1), dense_sizes(call, 0, 1), call.axis(2, 0));
}

// dy, x, hidden, weight, lora_a, lora_b, scale -> dx, dlora_a, dlora_b, dhidden
void lora_back(const Call& call, const DenseKernels& with) {
  with.lora_backward(call.in(0), call.in(1), call.in(2), call.in(3), call.in(4), call.in(5), *call.in(6), call.out(7),
                     call.out(8), call.out(9), call.out(10), dense_sizes(call, 0, 3), call.axis(4, 0));
}

// The input `place` holds, as floats: heads, key heads, causal, scale; the one after it is the mask or empty.
AttentionSizes attention_sizes(const Call& call, int query, int key, int place) {
  const float* settings = call.in(place);
  AttentionSizes sizes{};
  sizes.batch = call.axis(query, 0);
  sizes.queries = call.axis(query, 1);
  sizes.keys = call.axis(key, 1);
  sizes.heads = static_cast<long>(settings[0]);
  sizes.key_heads = static_cast<long>(settings[1]);
  sizes.size = call.axis(query, 2) / sizes.heads;
  sizes.causal = settings[2] != 0;
  sizes.scale = settings[3];
  const int mask = place + 1;
  if (call.ranks[mask] == 4) {  // (batch or 1, 1, queries or 1, keys)
    sizes.mask = call.in(mask);
    sizes.mask_query = call.axis(mask, 2) == 1 ? 0 : sizes.keys;
    sizes.mask_batch = call.axis(mask, 0) == 1 ? 0 : call.axis(mask, 2) * sizes.keys;
  }
  return sizes;
}

}  // namespace

#define MINDPET_OPERATION(name, ...)                                                                              \
  extern "C" __attribute__((visibility("default"))) int mindpet_##name(                                           \
      int count, void** params, int* ranks, std::int64_t** shapes, const char**, void*, void*) {                  \
    const Call call{count, params, ranks, shapes};                                                                \
    return guarded(#name, [&](const mindpet::Kernels& with) { __VA_ARGS__; });                                    \
  }

MINDPET_OPERATION(dense, dense(call, with.dense))
MINDPET_OPERATION(dense_bf16, dense(call, with.dense_bf16))
MINDPET_OPERATION(dense_back, dense_back(call, with.dense))
MINDPET_OPERATION(dense_back_bf16, dense_back(call, with.dense_bf16))
MINDPET_OPERATION(lora, lora(call, with.dense))
MINDPET_OPERATION(lora_bf16, lora(call, with.dense_bf16))
MINDPET_OPERATION(lora_back, lora_back(call, with.dense))
MINDPET_OPERATION(lora_back_bf16, lora_back(call, with.dense_bf16))

MINDPET_OPERATION(gelu, with.gelu(call.in(0), call.out(1), call.size(0)))
MINDPET_OPERATION(gelu_back, with.gelu_back(call.in(0), call.in(1), call.out(2), call.size(0)))
MINDPET_OPERATION(gelu_tanh, with.gelu_tanh(call.in(0), call.out(1), call.size(0)))
MINDPET_OPERATION(gelu_tanh_back, with.gelu_tanh_back(call.in(0), call.in(1), call.out(2), call.size(0)))
MINDPET_OPERATION(silu_gate, with.silu_gate(call.in(0), call.in(1), call.out(2), call.size(0)))
MINDPET_OPERATION(silu_gate_back,
                  with.silu_gate_back(call.in(0), call.in(1), call.in(2), call.out(3), call.out(4), call.size(0)))

// x, residual or an empty tensor, gamma, beta, epsilon -> y, normalised, inverse
MINDPET_OPERATION(layer_norm, with.layer_norm(call.in(0), call.size(1) == call.size(0) ? call.in(1) : nullptr,
                                              call.in(2), call.in(3), *call.in(4), call.out(5), call.out(6),
                                              call.out(7), call.rows(0), call.axis(0, -1)))
// dy, gamma, normalised, inverse -> dx
MINDPET_OPERATION(layer_norm_back, with.layer_norm_back(call.in(0), call.in(1), call.in(2), call.in(3), call.out(4),
                                                        call.rows(0), call.axis(0, -1)))
// x, gamma, epsilon -> y, inverse
MINDPET_OPERATION(rms_norm, with.rms_norm(call.in(0), call.in(1), *call.in(2), call.out(3), call.out(4), call.rows(0),
                                          call.axis(0, -1)))
// dy, x, gamma, inverse -> dx
MINDPET_OPERATION(rms_norm_back, with.rms_norm_back(call.in(0), call.in(1), call.in(2), call.in(3), call.out(4),
                                                    call.rows(0), call.axis(0, -1)))
// query, key, value, settings, mask -> output, logs
MINDPET_OPERATION(attention, with.attention(attention_sizes(call, 0, 1, 3), call.in(0), call.in(1), call.in(2),
                                            call.out(5), call.out(6)))
// query, key, value, settings, mask, output, logs, doutput -> dquery, dkey, dvalue
MINDPET_OPERATION(attention_back,
                  with.attention_back(attention_sizes(call, 0, 1, 3), call.in(0), call.in(1), call.in(2), call.in(5),
                                      call.in(6), call.in(7), call.out(8), call.out(9), call.out(10)))

// For the Python side, through ctypes.
extern "C" __attribute__((visibility("default"))) int mindpet_level() {  // 0: none, 1: AVX2, 2: AVX-512, 3: with bfloat16
  const mindpet::Kernels* best = mindpet::kernels();
  if (best == nullptr) return 0;
  return best == &mindpet::avx512_bf16_kernels ? 3 : best == &mindpet::avx512_kernels ? 2 : 1;
}

extern "C" __attribute__((visibility("default"))) void mindpet_set_threads(int count) { mindpet::set_threads(count); }

namespace mindpet {

const Kernels* kernels() {
  static const Kernels* best = [] {
    const Kernels* result = nullptr;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) result = &avx2_kernels;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq")) {
      result = &avx512_kernels;
      if (__builtin_cpu_supports("avx512bf16")) result = &avx512_bf16_kernels;
    }
    return result;
  }();
  return best;
}

}  // namespace mindpet
