// Several operations in a row as one with one gradient, such as a transformer block: for MindSpore a single node of a
// graph, which is compiled sooner than twenty, and whose memory is used again within it.
//
// What a block computes is written as numbers by kernels/block.py. Its tensors have places: first its inputs, then what
// its instructions compute, in their order. All but parameters, a mask and angles are rows (batch, length, columns).
#pragma once

#include <vector>

#include "kernels.hpp"
#include "shapes.hpp"

namespace mindpet {

enum class Code { dense, lora, attention, layer_norm, rms_norm, add, gelu, gelu_tanh, silu_gate, rotary };

constexpr int NONE = -1;  // in the place of a place

// The fields are, by code; `trains...` is 1 where a gradient reaches a parameter that else gets none:
//   dense       x, weight, bias, trains_weight, trains_bias
//   lora        x, weight, bias, lora_a, lora_b, scale, trains_bias
//   attention   query, key, value, mask, heads, key_heads, causal
//   layer_norm  x, residual, gamma, beta, epsilon, trains
//   rms_norm    x, residual, gamma, epsilon, trains; with a residual the sum is a second result
//   add         x, y
//   gelu, gelu_tanh  x
//   silu_gate   gate, x
//   rotary      x, cosine, sine, heads, interleaved
struct Instruction {
  static constexpr int FIELDS = 7;
  Code code;
  int result;  // the place of what it computes
  float fields[FIELDS];

  int place(int field) const { return static_cast<int>(fields[field]); }
  bool is_set(int field) const { return fields[field] != 0; }
  int results() const;
  std::vector<int> operands() const;  // the places of the rows that it reads
};

struct Block {
  int inputs;                  // the first of them are the rows that the block begins with
  std::vector<int> gradients;  // the places of the inputs that get one
  std::vector<Instruction> instructions;
  int places;
  float fingerprint;  // of the numbers it was written as; a float holds it exactly

  // The numbers are: inputs; how many gradients, and their places; and for each instruction its code and fields. What
  // an instruction computes first is read by another one, or is the block's output: that of the last one. Throws
  // std::invalid_argument where that does not hold.
  Block(const float* numbers, long count);

  int output() const;
};

// Sizes of a block's tensors for given inputs.
struct Layout {
  Shapes shapes;  // of the inputs
  long batch, length;
  std::vector<long> columns;  // of the rows in each place; 0 for other inputs
  std::vector<long> kept;     // where the tape holds the rows that a gradient asks for, by place; NONE for others
  std::vector<long> own;      // where it holds what else each instruction keeps
  long tape;                  // how many floats it has

  // Throws std::invalid_argument where the inputs do not fit each other.
  Layout(const Block&, Shapes inputs);

  // The same for inputs of which MindSpore tells ranks and axes; `ranks` and `axes` begin with the first input's.
  Layout(const Block&, const int* ranks, const std::int64_t* const* axes);

  long rows() const { return batch * length; }
  long size(int place) const;  // of a tensor, in floats
};

// Compute a block and its gradients; the result is how many floats of `room` that takes. Without kernels nothing is
// computed, and of the pointers none is read.
long run_forward(const Block&, const Layout&, const Kernels*, const float* const* inputs, float* y, float* tape,
                 float* room);
long run_backward(const Block&, const Layout&, const Kernels*, const float* const* inputs, const float* dy,
                  const float* tape, float* const* gradients, float* room);

// Blocks have numbers, for MindSpore to call them by. Returns the fingerprint, or -1 where the number is out of range
// or stands for another block.
constexpr int BLOCKS = 16;
#define MINDPET_FOR_BLOCKS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
float define_block(int number, const float* numbers, long count);

// Throws std::invalid_argument where there is none.
const Block& block(int number);

}  // namespace mindpet
