// Blocks in the making, and what they are to compute.
#pragma once

#include <map>

#include "block.hpp"
#include "check.hpp"

using mindpet::Code;
using mindpet::NONE;
using mindpet::Shape;
using mindpet::Shapes;

constexpr int RESULTS = 1000;  // the place of the first result, until all inputs are known

struct Step {
  Code code;
  std::vector<float> fields;
  int result;
};

// A block in the making. Its first input are rows; its functions return places.
struct Program {
  Shapes shapes;  // of its inputs
  std::vector<int> trained = {0};
  std::vector<Step> steps;
  std::map<int, long> columns;  // of the rows in each place
  int results = 0;

  Program(long batch, long length, long width);

  long batch() const { return shapes[0][0]; }
  long length() const { return shapes[0][1]; }
  int output() const { return steps.back().result; }
  const Shape& shape(int place) const { return shapes[static_cast<std::size_t>(place)]; }
  Numbers written() const;  // as the library takes it
  mindpet::Block block() const;
  mindpet::RotarySizes rotary_sizes(const Step&) const;

  int input(const Shape& shape);
  int parameter(const Shape& shape, bool trains);

  // An operation with the fields that block.hpp lists, whose result has other columns than its first operand, or as
  // many.
  int step(Code code, const std::vector<float>& fields, long width);

  template <class... Fields>
  int same(Code code, int x, Fields... fields) {
    return step(code, {static_cast<float>(x), static_cast<float>(fields)...}, columns[x]);
  }

  // Operations with parameters of their own.
  int dense(int x, long outputs, bool biased, bool trains_weight, bool trains_bias);
  int lora(int x, long outputs, long rank, bool biased, bool trains_bias);
  int layer_norm(int x, int residual, bool trains);
  int rms_norm(int x, int residual, bool trains);

  // Operations with given ones.
  int dense_by(int x, int weight, int bias, bool trains_weight, bool trains_bias);
  int attention(int query, int key, int value, int mask, int heads, int key_heads, bool causal);
  int rotary(int x, int cosine, int sine, int heads, bool interleaved);
};

// Layers of BERT: heads of `size`, LoRA on queries and values, and norms behind the residuals.
Program bert(int layers, long batch, long length, int heads, long size, bool trains_norms);

// Layers of Llama: norms before the operations, angles, grouped heads and a gate.
Program llama(int layers, long batch, long length, int heads, int key_heads, long size);

// What a program computes of its inputs, in double precision.
Exact computed(const Program&, const std::vector<Exact>& inputs);

// The output of a program and its gradients, by the kernels one by one, each with memory of its own.
std::vector<Numbers> computed_step_by_step(const Kernels&, const Program&, const std::vector<Numbers>& inputs,
                                           const Numbers& doutput);
