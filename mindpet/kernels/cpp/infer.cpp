// The shapes and dtypes of what entry.cpp's operations return, under the names by which MindSpore asks for them:
// mindpet_gelu has mindpet_geluInferShape and mindpet_geluInferType. They are C++ because MindSpore may compile a part
// of a graph anew when it runs, without Python.
//
// Native code trusts shapes; here is where they are checked. The last argument of each function, which would hold
// attributes, is not used.
#include <algorithm>
#include <vector>

#include "block.hpp"
#include "shapes.hpp"

namespace {

using mindpet::require;
using mindpet::require_rank;
using mindpet::Shape;
using mindpet::Shapes;
using Types = std::vector<int>;

struct Inputs {
  int* ranks;
  std::int64_t** shapes;

  Shape operator[](int i) const { return Shape(shapes[i], shapes[i] + ranks[i]); }
};

// `shape` without its last axis, and with another one there.
Shape rows(Shape shape) {
  if (!shape.empty()) shape.pop_back();
  return shape;
}

Shape with_columns(const Shape& shape, std::int64_t columns) {
  Shape result = rows(shape);
  result.push_back(columns);
  return result;
}

Shape columns(const Shape& shape) { return shape.empty() ? Shape{} : Shape{shape.back()}; }

// What holds the elements of `shape` rounded to bfloat16, two in the room of a float32.
Shape rounded(const Shape& shape) {
  std::int64_t count = 1;
  for (std::int64_t size : shape) {
    if (size < 0) return {-1};
    count *= size;
  }
  return {(count + 1) / 2};
}

// The same by rows, each of which begins with a new float32.
Shape rounded_rows(const Shape& shape) { return with_columns(shape, shape.back() < 0 ? -1 : (shape.back() + 1) / 2); }

Shape silu_gate(const Inputs& in) {
  require("x", in[1], in[0]);
  return in[0];
}

Shapes layer_norm(const Inputs& in, bool has_residual, bool rounds) {
  require("gamma", in[1], columns(in[0]));
  require("beta", in[2], columns(in[0]));
  if (has_residual) require("residual", in[4], in[0]);
  return {in[0], rounds ? rounded(in[0]) : in[0], rows(in[0])};
}

Shapes rms_norm(const Inputs& in) {
  require("gamma", in[1], columns(in[0]));
  return {in[0], rows(in[0])};
}

Shapes add_rms_norm(const Inputs& in) {
  require("residual", in[1], in[0]);
  require("gamma", in[2], columns(in[0]));
  return {in[0], in[0], rows(in[0])};
}

Shape rotary(const Inputs& in) {
  const Shape x = in[0], cosine = in[1];
  require_rank("cosine", cosine, 3);
  const std::int64_t pairs = 2 * cosine[2] <= x[3] ? cosine[2] : x[3] / 2;
  const Shape angles = {cosine[0] == 1 ? 1 : x[0], x[1], pairs};
  require("cosine", cosine, angles);
  require("sine", in[2], angles);
  return x;
}

Shape dense(const Inputs& in, int bias) {
  const Shape weight = in[1];
  require_rank("weight", weight, 2);
  require("weight", weight, {weight[0], in[0].empty() ? 0 : in[0].back()});
  if (bias >= 0) require("bias", in[bias], {weight[0]});
  return with_columns(in[0], weight[0]);
}

Shape dense_back(const Inputs& in) { return with_columns(in[0], in[1][1]); }

Shapes lora(const Inputs& in, int bias) {
  const Shape y = dense(in, bias), lora_a = in[2];
  require_rank("lora_a", lora_a, 2);
  require("lora_a", lora_a, {lora_a[0], in[1][1]});
  require("lora_b", in[3], {in[1][0], lora_a[0]});
  return {y, with_columns(in[0], lora_a[0])};
}

Shapes lora_back(const Inputs& in) { return {with_columns(in[0], in[3][1]), in[4], in[5], in[2]}; }

Shapes attention(const Inputs& in, bool masked, bool rounds) {
  const Shape query = in[0], key = in[1];
  const std::int64_t batch = query[0], queries = query[1], heads = query[2];
  const bool shares = key[2] > 0 && heads % key[2] == 0;
  require("key", key, {batch, key[1], shares ? key[2] : heads, query[3]});
  require("value", in[2], key);
  if (masked) {
    const Shape mask = in[4];
    require_rank("mask", mask, 4);
    require("mask", mask, {mask[0] == 1 ? 1 : batch, 1, mask[2] == 1 ? 1 : queries, key[1]});
  }
  const Shape kept = {batch, heads, queries, 2};
  if (!rounds) return {query, kept};
  return {query, kept, rounded(key)};
}

// A block's sizes follow from all axes of its rows, so that none may be unknown.
Shapes block(const Inputs& in, int number) {
  const mindpet::Block& block = mindpet::block(number);
  const mindpet::Layout layout(block, in.ranks + 1, in.shapes + 1);
  const long room = run_forward(block, layout, nullptr, nullptr, nullptr, nullptr, nullptr);
  return {with_columns(in[1], layout.columns[block.output()]), {std::max(1L, layout.tape)}, {std::max(1L, room)}};
}

Shapes block_back(const Inputs& in, int number) {
  const mindpet::Block& block = mindpet::block(number);
  const mindpet::Layout layout(block, in.ranks + 3, in.shapes + 3);
  const long room = run_backward(block, layout, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr);
  Shapes result;
  for (int place : block.gradients) result.push_back(in[3 + place]);
  result.push_back({std::max(1L, room)});
  return result;
}

Shapes cross_entropy(const Inputs& in) {
  require("labels", in[1], rows(in[0]));
  Shape kept = in[1];
  kept.push_back(2);
  return {in[1], kept};
}

}  // namespace

#define MINDPET_EXPORT extern "C" __attribute__((visibility("default")))

// All outputs have the dtype of the first input, float32.
#define MINDPET_INFER_ONE(name, ...)                                                                    \
  MINDPET_EXPORT Shape mindpet_##name##InferShape(int* ranks, std::int64_t** shapes, void*) {           \
    const Inputs in{ranks, shapes};                                                                     \
    return __VA_ARGS__;                                                                                 \
  }                                                                                                     \
  MINDPET_EXPORT int mindpet_##name##InferType(Types inputs, void*) { return inputs[0]; }

#define MINDPET_INFER(name, outputs, ...)                                                               \
  MINDPET_EXPORT Shapes mindpet_##name##InferShape(int* ranks, std::int64_t** shapes, void*) {          \
    const Inputs in{ranks, shapes};                                                                     \
    return __VA_ARGS__;                                                                                 \
  }                                                                                                     \
  MINDPET_EXPORT Types mindpet_##name##InferType(Types inputs, void*) { return Types(outputs, inputs[0]); }

MINDPET_INFER_ONE(gelu, in[0])
MINDPET_INFER_ONE(round_rows, rounded_rows(in[0]))
MINDPET_INFER(gelu_bf16, 2, Shapes{in[0], rounded(in[0])})
MINDPET_INFER_ONE(gelu_back, in[1])
MINDPET_INFER_ONE(gelu_back_bf16, in[1])
MINDPET_INFER_ONE(gelu_tanh, in[0])
MINDPET_INFER(gelu_tanh_bf16, 2, Shapes{in[0], rounded(in[0])})
MINDPET_INFER_ONE(gelu_tanh_back, in[1])
MINDPET_INFER_ONE(gelu_tanh_back_bf16, in[1])
MINDPET_INFER_ONE(silu_gate, silu_gate(in))
MINDPET_INFER(silu_gate_bf16, 3, Shapes{silu_gate(in), rounded(in[0]), rounded(in[0])})
MINDPET_INFER(silu_gate_back, 2, Shapes{in[2], in[2]})
MINDPET_INFER(silu_gate_back_bf16, 2, Shapes{in[2], in[2]})
MINDPET_INFER(layer_norm, 3, layer_norm(in, false, false))
MINDPET_INFER(layer_norm_bf16, 3, layer_norm(in, false, true))
MINDPET_INFER(layer_norm_residual, 3, layer_norm(in, true, false))
MINDPET_INFER(layer_norm_residual_bf16, 3, layer_norm(in, true, true))
MINDPET_INFER(layer_norm_frozen, 3, layer_norm(in, false, false))
MINDPET_INFER(layer_norm_frozen_bf16, 3, layer_norm(in, false, true))
MINDPET_INFER(layer_norm_frozen_residual, 3, layer_norm(in, true, false))
MINDPET_INFER(layer_norm_frozen_residual_bf16, 3, layer_norm(in, true, true))
MINDPET_INFER_ONE(layer_norm_frozen_back, in[0])
MINDPET_INFER_ONE(layer_norm_frozen_back_bf16, in[0])
MINDPET_INFER(layer_norm_back, 3, Shapes{in[0], in[1], in[1]})
MINDPET_INFER(layer_norm_back_bf16, 3, Shapes{in[0], in[1], in[1]})
MINDPET_INFER(rms_norm, 2, rms_norm(in))
MINDPET_INFER(rms_norm_frozen, 2, rms_norm(in))
MINDPET_INFER_ONE(rms_norm_frozen_back, in[0])
MINDPET_INFER(rms_norm_back, 2, Shapes{in[0], in[2]})
MINDPET_INFER(add_rms_norm, 3, add_rms_norm(in))
MINDPET_INFER(add_rms_norm_frozen, 3, add_rms_norm(in))
MINDPET_INFER_ONE(add_rms_norm_frozen_back, in[0])
MINDPET_INFER(add_rms_norm_back, 2, Shapes{in[0], in[3]})
MINDPET_INFER_ONE(rotary, rotary(in))
MINDPET_INFER_ONE(rotary_back, in[0])
MINDPET_INFER_ONE(dense, dense(in, -1))
MINDPET_INFER_ONE(dense_bf16, dense(in, -1))
MINDPET_INFER_ONE(dense_biased, dense(in, 2))
MINDPET_INFER_ONE(dense_biased_bf16, dense(in, 2))
MINDPET_INFER_ONE(dense_shifted, dense(in, 2))
MINDPET_INFER_ONE(dense_shifted_bf16, dense(in, 2))
MINDPET_INFER_ONE(dense_trained, dense(in, -1))
MINDPET_INFER_ONE(dense_trained_biased, dense(in, 2))
MINDPET_INFER_ONE(weight_back, Shape{in[0].back(), in[1].back()})
MINDPET_INFER_ONE(bias_back, columns(in[0]))
MINDPET_INFER_ONE(dense_back, dense_back(in))
MINDPET_INFER_ONE(dense_back_bf16, dense_back(in))
MINDPET_INFER(lora, 2, lora(in, -1))
MINDPET_INFER(lora_bf16, 2, lora(in, -1))
MINDPET_INFER(lora_biased, 2, lora(in, 5))
MINDPET_INFER(lora_biased_bf16, 2, lora(in, 6))
MINDPET_INFER(lora_shifted, 2, lora(in, 5))
MINDPET_INFER(lora_shifted_bf16, 2, lora(in, 6))
MINDPET_INFER(lora_back, 4, lora_back(in))
MINDPET_INFER(lora_back_bf16, 4, lora_back(in))
MINDPET_INFER(attention, 2, attention(in, false, false))
MINDPET_INFER(attention_bf16, 3, attention(in, false, true))
MINDPET_INFER(attention_masked, 2, attention(in, true, false))
MINDPET_INFER(attention_masked_bf16, 3, attention(in, true, true))
MINDPET_INFER(attention_back, 3, Shapes{in[0], in[1], in[1]})
MINDPET_INFER(attention_back_bf16, 3, Shapes{in[0], in[1], in[1]})
MINDPET_INFER(attention_back_masked, 3, Shapes{in[0], in[1], in[1]})
MINDPET_INFER(attention_back_masked_bf16, 3, Shapes{in[0], in[1], in[1]})
MINDPET_INFER(cross_entropy, 2, cross_entropy(in))
MINDPET_INFER_ONE(cross_entropy_back, in[1])

#define MINDPET_INFER_BLOCK(number)                                                                  \
  MINDPET_INFER(block_##number, 3, block(in, number))                                                \
  MINDPET_INFER(block_back_##number, static_cast<int>(mindpet::block(number).gradients.size()) + 1, \
                block_back(in, number))
MINDPET_FOR_BLOCKS(MINDPET_INFER_BLOCK)
