// The operations, as a table that each instruction set fills.
#pragma once

#include <cstdint>

namespace mindpet {

// The sizes of an attention. Queries, keys and values are row-major (batch * length, heads * size); `key_heads` divides
// `heads`, and neighbouring heads share one of keys and values.
struct AttentionSizes {
  long batch, heads, key_heads, size;
  long queries, keys;  // their numbers, for each example
  const float* mask;   // added to the scores; null for none
  long mask_batch;     // from one example's mask to the next
  long mask_query;     // from one query's to the next; 0 where they share it
  bool causal;         // the last query sees all keys, the one before all but the last, and so on
  float scale;
};

// The sizes of a rotation of x (batch * length, heads * size) by angles (batch or 1, length, pairs).
struct RotarySizes {
  long batch, length, heads, size;
  long pairs;         // turned in each head; 2 * pairs <= size
  long angles_batch;  // from one example's angles to the next; 0 where they share them
  bool interleaved;   // a pair is two neighbours; otherwise element i and element pairs + i
};

struct DenseSizes {
  long rows, outputs, inputs;
};

struct DenseKernels {
  void (*forward)(const float* x, const float* weight, const float* bias, float* y, DenseSizes);
  void (*backward)(const float* dy, const float* weight, float* dx, DenseSizes);
  // `prepared` is x itself, and where products are in bfloat16 what `round_rows` makes of it.
  void (*lora_forward)(const float* x, const void* prepared, const float* weight, const float* bias,
                       const float* lora_a, const float* lora_b, float scale, float* y, float* hidden, DenseSizes,
                       long rank);
  void (*lora_backward)(const float* dy, const void* prepared, const float* hidden, const float* weight,
                        const float* lora_a, const float* lora_b, float scale, float* dx, float* dlora_a,
                        float* dlora_b, float* dhidden, DenseSizes, long rank);
};

// Normalisation and attention, which keep numbers for their gradient in float32 or in bfloat16.
struct KeepingKernels {
  void (*layer_norm)(const float* x, const float* residual, const float* gamma, const float* beta, float epsilon,
                     float* y, void* normalised, float* inverse, long rows, long columns);
  void (*layer_norm_back)(const float* dy, const float* gamma, const void* normalised, const float* inverse,
                          float* dx, float* dgamma, float* dbeta, long rows, long columns);
  void (*gelu_back)(const void* x, const float* dy, float* dx, long count);
  void (*gelu_tanh_back)(const void* x, const float* dy, float* dx, long count);
  void (*silu_gate_back)(const void* gate, const void* x, const float* dy, float* dgate, float* dx, long count);
  void (*attention_back)(const AttentionSizes&, const float* query, const float* key, const void* value,
                         const float* kept, const float* doutput, float* dquery, float* dkey, float* dvalue);
};

// Operations that round what their gradient needs, where the float32 ones only leave their inputs alive.
struct RoundingKernels {
  void (*round_rows)(const float* x, void* pairs, long rows, long columns);
  void (*keep)(const float* x, long count, void* kept);
  void (*gelu)(const float* x, float* y, void* kept, long count);
  void (*gelu_tanh)(const float* x, float* y, void* kept, long count);
};

struct Kernels {
  DenseKernels dense;
  KeepingKernels keeping;
  // Null functions where the processor has no bfloat16 products:
  DenseKernels dense_bf16;
  KeepingKernels keeping_bf16;
  RoundingKernels rounding;
  void (*weight_back)(const float* dy, const float* x, float* dweight, long rows, long outputs, long inputs);
  void (*bias_back)(const float* dy, float* sums, long rows, long columns);
  void (*add)(const float* x, const float* y, float* sum, long count);  // `sum` may be `x`
  void (*gelu)(const float* x, float* y, long count);
  void (*gelu_tanh)(const float* x, float* y, long count);
  void (*silu_gate)(const float* gate, const float* x, float* y, long count);
  void (*rms_norm)(const float* x, const float* residual, const float* gamma, float epsilon, float* y, float* total,
                   float* inverse, long rows, long columns);
  void (*rms_norm_back)(const float* dy, const float* dtotal, const float* s, const float* gamma, const float* inverse,
                        float* ds, float* dgamma, long rows, long columns);
  void (*rotary)(const RotarySizes&, const float* x, const float* cosine, const float* sine, float direction, float* y);
  void (*cross_entropy)(const float* logits, const std::int32_t* labels, float* losses, float* kept, long rows,
                        long classes);
  void (*cross_entropy_back)(const float* dlosses, const float* logits, const std::int32_t* labels, const float* kept,
                             float* dlogits, long rows, long classes);
  void (*attention)(const AttentionSizes&, const float* query, const float* key, const float* value, float* output,
                    float* kept);
};

extern const Kernels avx2_kernels, avx512_kernels, avx512_bf16_kernels;

bool runs_here(const Kernels& table);

// The best table that this processor can run, or null.
const Kernels* kernels();

}  // namespace mindpet
