#include "block.hpp"

#include <algorithm>
#include <cmath>
#include <memory>
#include <mutex>

namespace mindpet {
namespace {

constexpr long ALIGNED = 16;  // floats, so that each piece begins with a cache line

long whole(long floats) { return (floats + ALIGNED - 1) / ALIGNED * ALIGNED; }

float* at(float* base, long offset) { return base == nullptr ? nullptr : base + offset; }

const float* at(const float* base, long offset) { return base == nullptr ? nullptr : base + offset; }

// Memory in which pieces are taken and given back.
class Room {
 public:
  long take(long floats) {
    floats = whole(std::max(1L, floats));
    std::size_t best = pieces_.size();
    for (std::size_t i = 0; i < pieces_.size(); ++i) {
      const bool fits = pieces_[i].free && pieces_[i].size >= floats;
      if (fits && (best == pieces_.size() || pieces_[i].size < pieces_[best].size)) best = i;
    }
    if (best == pieces_.size()) {
      if (!pieces_.empty() && pieces_.back().free) pieces_.pop_back();
      const long end = pieces_.empty() ? 0 : pieces_.back().first + pieces_.back().size;
      pieces_.push_back({end, floats, false});
      highest_ = std::max(highest_, end + floats);
      return end;
    }
    const Piece found = pieces_[best];
    pieces_[best] = {found.first, floats, false};
    if (found.size > floats) {
      pieces_.insert(pieces_.begin() + static_cast<long>(best) + 1, {found.first + floats, found.size - floats, true});
    }
    return found.first;
  }

  void give_back(long first) {
    for (std::size_t i = 0; i < pieces_.size(); ++i) {
      if (pieces_[i].first == first) pieces_[i].free = true;
    }
    for (std::size_t i = pieces_.size(); i-- > 1;) {
      if (pieces_[i].free && pieces_[i - 1].free) {
        pieces_[i - 1].size += pieces_[i].size;
        pieces_.erase(pieces_.begin() + static_cast<long>(i));
      }
    }
  }

  long highest() const { return highest_; }

 private:
  struct Piece {
    long first, size;
    bool free;
  };
  std::vector<Piece> pieces_;  // in the order in which they lie
  long highest_ = 0;
};

DenseSizes dense_sizes(const Layout& layout, const Instruction& step) {
  return {layout.rows(), layout.columns[step.result], layout.columns[step.place(0)]};
}

AttentionSizes attention_sizes(const Layout& layout, const Instruction& step, const float* const* inputs) {
  AttentionSizes sizes{};
  sizes.batch = layout.batch;
  sizes.queries = sizes.keys = layout.length;
  sizes.heads = step.place(4);
  sizes.key_heads = step.place(5);
  sizes.size = layout.columns[step.place(0)] / sizes.heads;
  sizes.causal = step.is_set(6);
  sizes.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(sizes.size)));
  if (const int mask = step.place(3); mask != NONE) {
    const Shape& shape = layout.shapes[mask];
    sizes.mask = inputs[mask];
    sizes.mask_query = shape[2] == 1 ? 0 : sizes.keys;
    sizes.mask_batch = shape[0] == 1 ? 0 : shape[2] * sizes.keys;
  }
  return sizes;
}

RotarySizes rotary_sizes(const Layout& layout, const Instruction& step) {
  const Shape& angles = layout.shapes[step.place(1)];
  RotarySizes sizes{};
  sizes.batch = layout.batch;
  sizes.length = layout.length;
  sizes.heads = step.place(3);
  sizes.size = layout.columns[step.result] / sizes.heads;
  sizes.pairs = angles[2];
  sizes.angles_batch = angles[0] == 1 ? 0 : sizes.length * sizes.pairs;
  sizes.interleaved = step.is_set(4);
  return sizes;
}

// The operands that the gradient of an instruction reads.
std::vector<int> wanted(const Instruction& step) {
  switch (step.code) {
    case Code::dense:
      return step.is_set(3) ? step.operands() : std::vector<int>{};
    case Code::rms_norm:
      return {step.place(1) == NONE ? step.place(0) : step.result + 1};
    case Code::lora:
    case Code::attention:
    case Code::gelu:
    case Code::gelu_tanh:
    case Code::silu_gate:
      return step.operands();
    default:
      return {};
  }
}

void compute(const Layout& layout, const Instruction& step, const Kernels& with, const float* const* inputs,
             const std::vector<float*>& values, float* own) {
  const auto rows = [&](int field) -> const float* {
    const int place = step.place(field);
    if (place == NONE) return nullptr;
    return place < static_cast<int>(layout.shapes.size()) ? inputs[place] : values[place];
  };
  const auto input = [&](int field) { return step.place(field) == NONE ? nullptr : inputs[step.place(field)]; };
  const long columns = layout.columns[step.result], count = layout.rows() * columns;
  float* y = values[step.result];
  switch (step.code) {
    case Code::dense:
      return with.dense.forward(rows(0), input(1), input(2), y, dense_sizes(layout, step));
    case Code::lora:
      return with.dense.lora_forward(rows(0), rows(0), input(1), input(2), input(3), input(4), *input(5), y, own,
                                     dense_sizes(layout, step), layout.shapes[step.place(3)][0]);
    case Code::attention:
      return with.attention(attention_sizes(layout, step, inputs), rows(0), rows(1), rows(2), y, own);
    case Code::layer_norm:
      return with.keeping.layer_norm(rows(0), rows(1), input(2), input(3), step.fields[4], y, own,
                                     own + whole(count), layout.rows(), columns);
    case Code::rms_norm:
      return with.rms_norm(rows(0), rows(1), input(2), step.fields[3], y,
                           rows(1) == nullptr ? nullptr : values[step.result + 1], own, layout.rows(), columns);
    case Code::add:
      return with.add(rows(0), rows(1), y, count);
    case Code::gelu:
      return with.gelu(rows(0), y, count);
    case Code::gelu_tanh:
      return with.gelu_tanh(rows(0), y, count);
    case Code::silu_gate:
      return with.silu_gate(rows(0), rows(1), y, count);
    case Code::rotary:
      return with.rotary(rotary_sizes(layout, step), rows(0), input(1), input(2), 1.0f, y);
  }
}

// The gradients of a block, from its last instruction to its first.
class Backward {
 public:
  Backward(const Block& block, const Layout& layout, const Kernels* with, const float* const* inputs,
           const float* tape, float* const* gradients, float* memory)
      : block_(block), layout_(layout), with_(with), inputs_(inputs), tape_(tape), memory_(memory),
        gradients_(static_cast<std::size_t>(block.places)) {
    for (std::size_t i = 0; i < block.gradients.size(); ++i) {
      Gradient& gradient = gradients_[block.gradients[i]];
      gradient.is_output = true;
      gradient.total = with == nullptr ? nullptr : gradients[i];
    }
  }

  long run(const float* dy) {
    // Nothing is written where a gradient was not taken from the room.
    gradients_[block_.output()].total = const_cast<float*>(dy);
    gradients_[block_.output()].exists = true;
    for (std::size_t i = block_.instructions.size(); i-- > 0;) {
      const Instruction& step = block_.instructions[i];
      go_back(step, at(tape_, layout_.own[i]));
      for (int result = 0; result < step.results(); ++result) release(step.result + result);
    }
    return room_.highest();
  }

 private:
  // What has been added up of the gradient of a tensor, and the places of further summands that are being computed:
  // several where an instruction reads it several times.
  struct Gradient {
    float* total = nullptr;
    long taken = NONE;
    std::vector<long> summands;
    bool exists = false, is_output = false;
  };

  const float* rows(int place) const {
    return place < block_.inputs ? (with_ == nullptr ? nullptr : inputs_[place]) : at(tape_, layout_.kept[place]);
  }

  const float* input(int place) const { return place == NONE || with_ == nullptr ? nullptr : inputs_[place]; }

  // Where a summand of a gradient is to be written; `finish` adds them up.
  float* begin(int place) {
    Gradient& gradient = gradients_[place];
    if (gradient.exists) {
      gradient.summands.push_back(room_.take(layout_.size(place)));
      return at(memory_, gradient.summands.back());
    }
    gradient.exists = true;
    if (!gradient.is_output) {
      gradient.taken = room_.take(layout_.size(place));
      gradient.total = at(memory_, gradient.taken);
    }
    return gradient.total;
  }

  void finish(std::initializer_list<int> places) {
    for (int place : places) {
      Gradient& gradient = gradients_[place];
      for (long summand : gradient.summands) {
        if (with_ != nullptr) with_->add(gradient.total, memory_ + summand, gradient.total, layout_.size(place));
        room_.give_back(summand);
      }
      gradient.summands.clear();
    }
  }

  // Adds numbers that lie elsewhere to a gradient.
  void give(int place, const float* summand) {
    Gradient& gradient = gradients_[place];
    const bool exists = gradient.exists;
    float* to = exists ? gradient.total : begin(place);
    if (with_ == nullptr) return;
    if (exists) {
      with_->add(to, summand, to, layout_.size(place));
    } else {
      std::copy_n(summand, layout_.size(place), to);
    }
  }

  // Where a gradient is to be written that is computed element by element from another one, `from`: in its very place
  // where nobody else needs that.
  float* begin_in_place(int place, int from) {
    Gradient &gradient = gradients_[place], &source = gradients_[from];
    if (gradient.exists || gradient.is_output || source.taken == NONE) return begin(place);
    gradient.exists = true;
    gradient.total = source.total;
    gradient.taken = source.taken;
    source.taken = NONE;
    return gradient.total;
  }

  void release(int place) {
    if (gradients_[place].taken != NONE) room_.give_back(gradients_[place].taken);
  }

  void bias_of_dense(const Instruction& step, const float* dy) {
    const int bias = step.place(2);
    float* dbias = begin(bias);
    if (with_ != nullptr) with_->bias_back(dy, dbias, layout_.rows(), layout_.columns[step.result]);
    finish({bias});
  }

  void go_back(const Instruction& step, const float* own) {
    const float* dy = gradients_[step.result].total;
    const int x = step.place(0), second = step.place(1);
    const long columns = layout_.columns[step.result], count = layout_.rows() * columns;
    switch (step.code) {
      case Code::dense: {
        const DenseSizes sizes = dense_sizes(layout_, step);
        if (step.is_set(4)) bias_of_dense(step, dy);
        if (step.is_set(3)) {
          float* dweight = begin(second);
          if (with_ != nullptr) with_->weight_back(dy, rows(x), dweight, sizes.rows, sizes.outputs, sizes.inputs);
          finish({second});
        }
        float* dx = begin(x);
        if (with_ != nullptr) with_->dense.backward(dy, input(second), dx, sizes);
        return finish({x});
      }
      case Code::lora: {
        const int lora_a = step.place(3), lora_b = step.place(4);
        const long rank = layout_.shapes[lora_a][0];
        if (step.is_set(6)) bias_of_dense(step, dy);
        float *dx = begin(x), *da = begin(lora_a), *db = begin(lora_b);
        const long hidden = room_.take(layout_.rows() * rank);
        if (with_ != nullptr) {
          with_->dense.lora_backward(dy, rows(x), own, input(second), input(lora_a), input(lora_b),
                                     *input(step.place(5)), dx, da, db, memory_ + hidden, dense_sizes(layout_, step),
                                     rank);
        }
        room_.give_back(hidden);
        return finish({x, lora_a, lora_b});
      }
      case Code::attention: {
        const int value = step.place(2);
        float *dquery = begin(x), *dkey = begin(second), *dvalue = begin(value);
        if (with_ != nullptr) {
          with_->keeping.attention_back(attention_sizes(layout_, step, inputs_), rows(x), rows(second), rows(value),
                                        own, dy, dquery, dkey, dvalue);
        }
        return finish({x, second, value});
      }
      case Code::layer_norm: {
        const int gamma = step.place(2), beta = step.place(3);
        const bool trains = step.is_set(5);
        float *dgamma = trains ? begin(gamma) : nullptr, *dbeta = trains ? begin(beta) : nullptr;
        float* dx = begin_in_place(x, step.result);
        if (with_ != nullptr) {
          with_->keeping.layer_norm_back(dy, input(gamma), own, own + whole(count), dx, dgamma, dbeta, layout_.rows(),
                                         columns);
        }
        if (second != NONE) give(second, dx);
        if (trains) finish({gamma, beta});
        return finish({x});
      }
      case Code::rms_norm: {
        const int gamma = step.place(2);
        const Gradient* beside = second == NONE ? nullptr : &gradients_[step.result + 1];
        float* dgamma = step.is_set(4) ? begin(gamma) : nullptr;
        float* dx = begin_in_place(x, step.result);
        if (with_ != nullptr) {
          with_->rms_norm_back(dy, beside != nullptr && beside->exists ? beside->total : nullptr,
                               rows(second == NONE ? x : step.result + 1), input(gamma), own, dx, dgamma,
                               layout_.rows(), columns);
        }
        if (second != NONE) give(second, dx);
        if (step.is_set(4)) finish({gamma});
        return finish({x});
      }
      case Code::add:
        give(x, dy);
        return give(second, dy);
      case Code::gelu:
      case Code::gelu_tanh: {
        float* dx = begin_in_place(x, step.result);
        if (with_ != nullptr) {
          const auto back = step.code == Code::gelu ? with_->keeping.gelu_back : with_->keeping.gelu_tanh_back;
          back(rows(x), dy, dx, count);
        }
        return finish({x});
      }
      case Code::silu_gate: {
        float *dgate = begin(x), *dx = begin(second);
        if (with_ != nullptr) with_->keeping.silu_gate_back(rows(x), rows(second), dy, dgate, dx, count);
        return finish({x, second});
      }
      case Code::rotary: {
        float* dx = begin(x);
        if (with_ != nullptr) {
          with_->rotary(rotary_sizes(layout_, step), dy, input(second), input(step.place(2)), -1.0f, dx);
        }
        return finish({x});
      }
    }
  }

  const Block& block_;
  const Layout& layout_;
  const Kernels* with_;
  const float* const* inputs_;
  const float* tape_;
  float* memory_;
  std::vector<Gradient> gradients_;
  Room room_;
};

void require_divisor(long heads, long whole) {
  if (heads > 0 && whole % heads == 0) return;
  throw std::invalid_argument(std::to_string(heads) + " heads cannot share " + std::to_string(whole) +
                              ": give a number of heads that divides it.");
}

Shapes shapes_of(int count, const int* ranks, const std::int64_t* const* axes) {
  Shapes shapes;
  for (int i = 0; i < count; ++i) shapes.emplace_back(axes[i], axes[i] + ranks[i]);
  return shapes;
}

std::mutex definitions;
std::unique_ptr<Block> defined[BLOCKS];

}  // namespace

int Instruction::results() const { return code == Code::rms_norm && place(1) != NONE ? 2 : 1; }

std::vector<int> Instruction::operands() const {
  switch (code) {
    case Code::attention:
      return {place(0), place(1), place(2)};
    case Code::layer_norm:
    case Code::rms_norm:
      return place(1) == NONE ? std::vector<int>{place(0)} : std::vector<int>{place(0), place(1)};
    case Code::add:
    case Code::silu_gate:
      return {place(0), place(1)};
    default:
      return {place(0)};
  }
}

Block::Block(const float* numbers, long count) {
  std::uint32_t hash = 2166136261u;  // FNV-1a
  const auto* bytes = reinterpret_cast<const unsigned char*>(numbers);
  for (std::size_t i = 0; i < static_cast<std::size_t>(count) * sizeof *numbers; ++i) {
    hash = (hash ^ bytes[i]) * 16777619u;
  }
  fingerprint = static_cast<float>(hash >> 8);
  const float* const end = numbers + count;
  inputs = static_cast<int>(*numbers++);
  for (int left = static_cast<int>(*numbers++); left > 0; --left) gradients.push_back(static_cast<int>(*numbers++));
  places = inputs;
  std::vector<bool> read;
  while (numbers + Instruction::FIELDS < end) {
    Instruction step;
    step.code = static_cast<Code>(static_cast<int>(*numbers++));
    step.result = places;
    std::copy_n(numbers, Instruction::FIELDS, step.fields);
    numbers += Instruction::FIELDS;
    places += step.results();
    read.resize(places, false);
    for (int place : step.operands()) read[place] = true;
    instructions.push_back(step);
  }
  if (numbers != end || instructions.empty()) throw std::invalid_argument("a block ends with a whole instruction.");
  for (const Instruction& step : instructions) {
    if (!read[step.result] && step.result != output()) throw std::invalid_argument("a block reads what it computes.");
  }
}

int Block::output() const { return instructions.back().result; }

Layout::Layout(const Block& block, Shapes given)
    : shapes(std::move(given)), columns(block.places, 0), kept(block.places, NONE), tape(0) {
  for (const Shape& shape : shapes) {
    for (std::int64_t axis : shape) {
      if (axis < 0) throw std::invalid_argument("a block asks for known shapes; one is " + text(shape) + ".");
    }
  }
  require_rank("the block's input", shapes[0], 3);
  batch = shapes[0][0];
  length = shapes[0][1];
  columns[0] = shapes[0][2];
  for (const Instruction& step : block.instructions) {
    const long width = columns[step.place(0)];
    const auto shape = [&](int field) -> const Shape& { return shapes[step.place(field)]; };
    const auto check = [&](const char* name, int field, const Shape& expected) {
      if (step.place(field) != NONE) require(name, shape(field), expected);
    };
    const auto same = [&](const char* name, int field) {
      require(name, {batch, length, columns[step.place(field)]}, {batch, length, width});
    };
    long& result = columns[step.result];
    result = width;
    switch (step.code) {
      case Code::dense:
      case Code::lora:
        require_rank("weight", shape(1), 2);
        result = shape(1)[0];
        check("weight", 1, {result, width});
        check("bias", 2, {result});
        if (step.code == Code::dense) break;
        require_rank("lora_a", shape(3), 2);
        check("lora_a", 3, {shape(3)[0], width});
        check("lora_b", 4, {result, shape(3)[0]});
        check("scale", 5, {});
        break;
      case Code::attention: {
        require_divisor(step.place(4), width);
        require_divisor(step.place(5), step.place(4));
        const long keys = width / step.place(4) * step.place(5);
        require("key", {batch, length, columns[step.place(1)]}, {batch, length, keys});
        require("value", {batch, length, columns[step.place(2)]}, {batch, length, keys});
        if (step.place(3) == NONE) break;
        require_rank("mask", shape(3), 4);
        check("mask", 3, {shape(3)[0] == 1 ? 1 : batch, 1, shape(3)[2] == 1 ? 1 : length, length});
        break;
      }
      case Code::layer_norm:
        check("beta", 3, {width});
        [[fallthrough]];
      case Code::rms_norm:
        if (step.place(1) != NONE) same("residual", 1);
        check("gamma", 2, {width});
        if (step.results() == 2) columns[step.result + 1] = width;
        break;
      case Code::add:
      case Code::silu_gate:
        same("the second operand", 1);
        break;
      case Code::rotary: {
        require_rank("cosine", shape(1), 3);
        require_divisor(step.place(3), width);
        const long pairs = std::min<long>(shape(1)[2], width / step.place(3) / 2);
        const Shape angles = {shape(1)[0] == 1 ? 1 : batch, length, pairs};
        check("cosine", 1, angles);
        check("sine", 2, angles);
        break;
      }
      case Code::gelu:
      case Code::gelu_tanh:
        break;
    }
  }
  const auto keep = [&](long floats) {
    const long first = tape;
    tape += whole(floats);
    return first;
  };
  for (const Instruction& step : block.instructions) {
    for (int place : wanted(step)) {
      if (place >= block.inputs && kept[place] == NONE) kept[place] = keep(size(place));
    }
    const long heads = step.code == Code::attention ? step.place(4) : 0;
    switch (step.code) {
      case Code::lora:
        own.push_back(keep(rows() * shapes[step.place(3)][0]));
        break;
      case Code::attention:
        own.push_back(keep(2 * rows() * heads));
        break;
      case Code::layer_norm:
        own.push_back(keep(size(step.result)));
        keep(rows());
        break;
      case Code::rms_norm:
        own.push_back(keep(rows()));
        break;
      default:
        own.push_back(tape);
    }
  }
}

Layout::Layout(const Block& block, const int* ranks, const std::int64_t* const* axes)
    : Layout(block, shapes_of(block.inputs, ranks, axes)) {}

long Layout::size(int place) const {
  if (place >= static_cast<int>(shapes.size())) return rows() * columns[place];
  long result = 1;
  for (std::int64_t axis : shapes[place]) result *= static_cast<long>(axis);
  return result;
}

long run_forward(const Block& block, const Layout& layout, const Kernels* with, const float* const* inputs, float* y,
                 float* tape, float* memory) {
  std::vector<std::size_t> last(block.places, 0);
  for (std::size_t i = 0; i < block.instructions.size(); ++i) {
    for (int place : block.instructions[i].operands()) last[place] = i;
  }
  Room room;
  std::vector<float*> values(block.places, nullptr);
  std::vector<long> taken(block.places, NONE);
  for (std::size_t i = 0; i < block.instructions.size(); ++i) {
    const Instruction& step = block.instructions[i];
    for (int place = step.result; place < step.result + step.results(); ++place) {
      if (layout.kept[place] != NONE) {
        values[place] = at(tape, layout.kept[place]);
      } else if (place == block.output()) {
        values[place] = y;
      } else {
        taken[place] = room.take(layout.size(place));
        values[place] = at(memory, taken[place]);
      }
    }
    if (with != nullptr) compute(layout, step, *with, inputs, values, at(tape, layout.own[i]));
    for (int place = block.inputs; place < step.result + step.results(); ++place) {
      if (taken[place] == NONE || last[place] > i) continue;
      room.give_back(taken[place]);
      taken[place] = NONE;
    }
  }
  return room.highest();
}

long run_backward(const Block& block, const Layout& layout, const Kernels* with, const float* const* inputs,
                  const float* dy, const float* tape, float* const* gradients, float* memory) {
  return Backward(block, layout, with, inputs, tape, gradients, memory).run(dy);
}

float define_block(int number, const float* numbers, long count) {
  if (number < 0 || number >= BLOCKS) return -1;
  auto fresh = std::make_unique<Block>(numbers, count);
  std::lock_guard<std::mutex> guard(definitions);
  if (defined[number] == nullptr) defined[number] = std::move(fresh);
  const float fingerprint = defined[number]->fingerprint;
  return fresh == nullptr || fresh->fingerprint == fingerprint ? fingerprint : -1;
}

const Block& block(int number) {
  std::lock_guard<std::mutex> guard(definitions);
  if (defined[number] == nullptr) throw std::invalid_argument("block " + std::to_string(number) + " is not defined.");
  return *defined[number];
}

}  // namespace mindpet
