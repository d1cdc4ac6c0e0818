#include "program.hpp"

Program::Program(long batch, long length, long width) : shapes{{batch, length, width}} { columns[0] = width; }

Numbers Program::written() const {
  const auto inputs = static_cast<float>(shapes.size());
  Numbers numbers = {inputs, static_cast<float>(trained.size())};
  numbers.insert(numbers.end(), trained.begin(), trained.end());
  for (const Step& step : steps) {
    numbers.push_back(static_cast<float>(step.code));
    for (float field : step.fields) numbers.push_back(field < RESULTS ? field : field - RESULTS + inputs);
    numbers.resize(numbers.size() + mindpet::Instruction::FIELDS - step.fields.size());
  }
  return numbers;
}

mindpet::Block Program::block() const {
  const Numbers numbers = written();
  return mindpet::Block(numbers.data(), static_cast<long>(numbers.size()));
}

mindpet::RotarySizes Program::rotary_sizes(const Step& step) const {
  const Shape& angles = shape(static_cast<int>(step.fields[1]));
  const long heads = static_cast<long>(step.fields[3]), size = columns.at(step.result) / heads;
  const long angles_batch = angles[0] == 1 ? 0 : angles[1] * angles[2];
  return {batch(), length(), heads, size, angles[2], angles_batch, step.fields[4] != 0};
}

int Program::input(const Shape& shape) {
  shapes.push_back(shape);
  return static_cast<int>(shapes.size()) - 1;
}

int Program::parameter(const Shape& shape, bool trains) {
  const int place = input(shape);
  if (trains) trained.push_back(place);
  return place;
}

int Program::step(Code code, const std::vector<float>& fields, long width) {
  const int result = RESULTS + results;
  const bool has_sum = code == Code::rms_norm && fields[1] != NONE;
  for (int i = 0; i <= has_sum; ++i) columns[RESULTS + results++] = width;
  steps.push_back({code, fields, result});
  return result;
}

int Program::dense(int x, long outputs, bool biased, bool trains_weight, bool trains_bias) {
  const int weight = parameter({outputs, columns[x]}, trains_weight);
  const int bias = biased ? parameter({outputs}, trains_bias) : NONE;
  return dense_by(x, weight, bias, trains_weight, trains_bias);
}

int Program::lora(int x, long outputs, long rank, bool biased, bool trains_bias) {
  const int weight = parameter({outputs, columns[x]}, false);
  const int bias = biased ? parameter({outputs}, trains_bias) : NONE;
  const int a = parameter({rank, columns[x]}, true), b = parameter({outputs, rank}, true), scale = input({});
  return step(Code::lora, {float(x), float(weight), float(bias), float(a), float(b), float(scale), float(trains_bias)},
              outputs);
}

int Program::layer_norm(int x, int residual, bool trains) {
  const int gamma = parameter({columns[x]}, trains), beta = parameter({columns[x]}, trains);
  return same(Code::layer_norm, x, residual, gamma, beta, NORM_EPSILON, trains);
}

int Program::rms_norm(int x, int residual, bool trains) {
  return same(Code::rms_norm, x, residual, parameter({columns[x]}, trains), NORM_EPSILON, trains);
}

int Program::dense_by(int x, int weight, int bias, bool trains_weight, bool trains_bias) {
  return step(Code::dense, {float(x), float(weight), float(bias), float(trains_weight), float(trains_bias)},
              shape(weight)[0]);
}

int Program::attention(int query, int key, int value, int mask, int heads, int key_heads, bool causal) {
  return same(Code::attention, query, key, value, mask, heads, key_heads, causal);
}

int Program::rotary(int x, int cosine, int sine, int heads, bool interleaved) {
  return same(Code::rotary, x, cosine, sine, heads, interleaved);
}

Program bert(int layers, long batch, long length, int heads, long size, bool trains_norms) {
  const long width = heads * size;
  Program p(batch, length, width);
  const int mask = p.input({batch, 1, 1, length});
  int x = 0;
  for (int i = 0; i < layers; ++i) {
    const int query = p.lora(x, width, 2, true, false), key = p.dense(x, width, true, false, false);
    const int value = p.lora(x, width, 2, true, false);
    const int seen = p.dense(p.attention(query, key, value, mask, heads, heads, false), width, true, false, false);
    const int middle = p.layer_norm(seen, x, trains_norms);
    const int wide = p.same(Code::gelu, p.dense(middle, 2 * width + 1, true, false, false));
    x = p.layer_norm(p.dense(wide, width, true, false, false), middle, trains_norms);
  }
  return p;
}

Program llama(int layers, long batch, long length, int heads, int key_heads, long size) {
  const long width = heads * size, wide = 2 * width + 1;
  Program p(batch, length, width);
  const int cosine = p.input({1, length, size / 2}), sine = p.input({1, length, size / 2});
  int x = 0;
  for (int i = 0; i < layers; ++i) {
    const int before = p.rms_norm(x, NONE, true);
    const int query = p.rotary(p.lora(before, width, 2, false, false), cosine, sine, heads, false);
    const int key = p.rotary(p.dense(before, key_heads * size, false, false, false), cosine, sine, key_heads, false);
    const int value = p.lora(before, key_heads * size, 3, false, false);
    const int seen = p.attention(query, key, value, NONE, heads, key_heads, true);
    const int middle = p.rms_norm(p.dense(seen, width, false, false, false), x, true), sum = middle + 1;
    const int gate = p.dense(middle, wide, false, false, false), up = p.dense(middle, wide, false, true, false);
    x = p.same(Code::add, sum, p.dense(p.same(Code::silu_gate, gate, up), width, false, false, false));
  }
  return p;
}
