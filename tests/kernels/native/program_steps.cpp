#include <algorithm>
#include <cmath>

#include "program.hpp"

namespace {

// Calls kernels for one step after the other, and keeps all that they compute.
class StepByStep {
 public:
  StepByStep(const Kernels& with, const Program& program, const std::vector<Numbers>& inputs)
      : with_(with), program_(program), rows_(program.batch() * program.length()) {
    for (std::size_t place = 0; place < inputs.size(); ++place) values_[static_cast<int>(place)] = inputs[place];
  }

  const Numbers& forward() {
    for (const Step& step : program_.steps) compute(step);
    return values_[program_.output()];
  }

  std::vector<Numbers> backward(const Numbers& doutput) {
    gradients_[program_.output()] = doutput;
    for (auto step = program_.steps.rbegin(); step != program_.steps.rend(); ++step) go_back(*step);
    std::vector<Numbers> found;
    for (int place : program_.trained) found.push_back(gradients_[place]);
    return found;
  }

 private:
  const float* value(const Step& step, int field) { return data(values_, static_cast<int>(step.fields[field])); }

  static const float* data(std::map<int, Numbers>& of, int place) {
    return of.count(place) == 0 ? nullptr : of[place].data();
  }

  float* rows_of(std::map<int, Numbers>& of, int place, long columns) {
    of[place] = blank(static_cast<std::size_t>(rows_ * columns));
    return of[place].data();
  }

  // What a step keeps for its gradient, besides its operands.
  float* own(const Step& step, long columns) { return rows_of(kept_, step.result, columns); }
  float* inverse(const Step& step) { return rows_of(inverses_, step.result, 1); }

  mindpet::DenseSizes dense_sizes(const Step& step) {
    return {rows_, program_.columns.at(step.result), program_.columns.at(static_cast<int>(step.fields[0]))};
  }

  long rank(const Step& step) { return program_.shapes[static_cast<std::size_t>(step.fields[3])][0]; }

  mindpet::AttentionSizes attention_sizes(const Step& step) {
    mindpet::AttentionSizes s{};
    s.batch = program_.batch();
    s.queries = s.keys = program_.length();
    s.heads = static_cast<long>(step.fields[4]);
    s.key_heads = static_cast<long>(step.fields[5]);
    s.size = program_.columns.at(step.result) / s.heads;
    s.causal = step.fields[6] != 0;
    s.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(s.size)));
    s.mask = value(step, 3);
    if (s.mask != nullptr) {
      const Shape& shape = program_.shapes[static_cast<std::size_t>(step.fields[3])];
      s.mask_batch = shape[0] == 1 ? 0 : shape[2] * s.keys;
      s.mask_query = shape[2] == 1 ? 0 : s.keys;
    }
    return s;
  }

  void compute(const Step& step) {
    const auto in = [&](int field) { return value(step, field); };
    const long columns = program_.columns.at(step.result), count = rows_ * columns;
    float* y = rows_of(values_, step.result, columns);
    switch (step.code) {
      case Code::dense:
        return with_.dense.forward(in(0), in(1), in(2), y, dense_sizes(step));
      case Code::lora:
        return with_.dense.lora_forward(in(0), in(0), in(1), in(2), in(3), in(4), *in(5), y, own(step, rank(step)),
                                        dense_sizes(step), rank(step));
      case Code::attention: {
        const mindpet::AttentionSizes sizes = attention_sizes(step);
        return with_.attention(sizes, in(0), in(1), in(2), y, own(step, 2 * sizes.heads));
      }
      case Code::layer_norm:
        return with_.keeping.layer_norm(in(0), in(1), in(2), in(3), step.fields[4], y, own(step, columns),
                                        inverse(step), rows_, columns);
      case Code::rms_norm: {
        float* total = in(1) == nullptr ? nullptr : rows_of(values_, step.result + 1, columns);
        return with_.rms_norm(in(0), in(1), in(2), step.fields[3], y, total, inverse(step), rows_, columns);
      }
      case Code::add:
        return with_.add(in(0), in(1), y, count);
      case Code::gelu:
        return with_.gelu(in(0), y, count);
      case Code::gelu_tanh:
        return with_.gelu_tanh(in(0), y, count);
      case Code::silu_gate:
        return with_.silu_gate(in(0), in(1), y, count);
      case Code::rotary:
        return with_.rotary(program_.rotary_sizes(step), in(0), in(1), in(2), 1.0f, y);
    }
  }

  // A gradient to be computed; `add_up` adds it to what there is.
  float* fresh(const Step& step, int field) {
    const int place = static_cast<int>(step.fields[field]);
    fresh_.emplace_back(place, blank(values_[place].size()));
    return fresh_.back().second.data();
  }

  void add_up() {
    for (const auto& [place, summand] : fresh_) give(place, summand);
    fresh_.clear();
  }

  void give(int place, const Numbers& summand) {
    Numbers& total = gradients_[place];
    if (total.empty()) total = Numbers(summand.size());
    for (std::size_t i = 0; i < summand.size(); ++i) total[i] += summand[i];
  }

  void go_back(const Step& step) {
    const auto in = [&](int field) { return value(step, field); };
    const auto trains = [&](int field) { return step.fields[field] != 0; };
    const long columns = program_.columns.at(step.result), count = rows_ * columns;
    const float* dy = data(gradients_, step.result);
    const float* own = data(kept_, step.result);
    const float* inverse = data(inverses_, step.result);
    switch (step.code) {
      case Code::dense: {
        const mindpet::DenseSizes s = dense_sizes(step);
        with_.dense.backward(dy, in(1), fresh(step, 0), s);
        if (trains(3)) with_.weight_back(dy, in(0), fresh(step, 1), s.rows, s.outputs, s.inputs);
        if (trains(4)) with_.bias_back(dy, fresh(step, 2), rows_, columns);
        break;
      }
      case Code::lora: {
        Numbers between = blank(static_cast<std::size_t>(rows_ * rank(step)));
        float *dx = fresh(step, 0), *da = fresh(step, 3), *db = fresh(step, 4);
        with_.dense.lora_backward(dy, in(0), own, in(1), in(3), in(4), *in(5), dx, da, db, between.data(),
                                  dense_sizes(step), rank(step));
        if (trains(6)) with_.bias_back(dy, fresh(step, 2), rows_, columns);
        break;
      }
      case Code::attention: {
        float *dquery = fresh(step, 0), *dkey = fresh(step, 1), *dvalue = fresh(step, 2);
        with_.keeping.attention_back(attention_sizes(step), in(0), in(1), in(2), own, dy, dquery, dkey, dvalue);
        break;
      }
      case Code::layer_norm: {
        float *dx = fresh(step, 0), *dgamma = nullptr, *dbeta = nullptr;
        if (trains(5)) {
          dgamma = fresh(step, 2);
          dbeta = fresh(step, 3);
        }
        with_.keeping.layer_norm_back(dy, in(2), own, inverse, dx, dgamma, dbeta, rows_, columns);
        if (in(1) != nullptr) give(static_cast<int>(step.fields[1]), fresh_.front().second);
        break;
      }
      case Code::rms_norm: {
        float *ds = fresh(step, 0), *dgamma = trains(4) ? fresh(step, 2) : nullptr;
        const float* total = in(1) == nullptr ? in(0) : data(values_, step.result + 1);
        const float* dtotal = in(1) == nullptr ? nullptr : data(gradients_, step.result + 1);
        with_.rms_norm_back(dy, dtotal, total, in(2), inverse, ds, dgamma, rows_, columns);
        if (in(1) != nullptr) give(static_cast<int>(step.fields[1]), fresh_.front().second);
        break;
      }
      case Code::add:
        for (int field : {0, 1}) std::copy_n(dy, count, fresh(step, field));
        break;
      case Code::gelu:
        with_.keeping.gelu_back(in(0), dy, fresh(step, 0), count);
        break;
      case Code::gelu_tanh:
        with_.keeping.gelu_tanh_back(in(0), dy, fresh(step, 0), count);
        break;
      case Code::silu_gate: {
        float *dgate = fresh(step, 0), *dx = fresh(step, 1);
        with_.keeping.silu_gate_back(in(0), in(1), dy, dgate, dx, count);
        break;
      }
      case Code::rotary:
        with_.rotary(program_.rotary_sizes(step), dy, in(1), in(2), -1.0f, fresh(step, 0));
    }
    add_up();
  }

  const Kernels& with_;
  const Program& program_;
  const long rows_;
  std::map<int, Numbers> values_, kept_, inverses_, gradients_;
  std::vector<std::pair<int, Numbers>> fresh_;
};

}  // namespace

std::vector<Numbers> computed_step_by_step(const Kernels& with, const Program& program,
                                           const std::vector<Numbers>& inputs, const Numbers& doutput) {
  StepByStep steps(with, program, inputs);
  std::vector<Numbers> found = {steps.forward()};
  for (Numbers& gradient : steps.backward(doutput)) found.push_back(std::move(gradient));
  return found;
}
