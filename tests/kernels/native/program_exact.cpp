#include <cmath>

#include "program.hpp"

namespace {

class Reference {
 public:
  Reference(const Program& program, const std::vector<Exact>& inputs) : program_(program) {
    for (std::size_t place = 0; place < inputs.size(); ++place) values_[static_cast<int>(place)] = inputs[place];
  }

  Exact output() {
    for (const Step& step : program_.steps) values_[step.result] = computed(step);
    return values_[program_.output()];
  }

 private:
  Exact computed(const Step& step) {
    const auto value = [&](int field) -> const Exact& { return values_[static_cast<int>(step.fields[field])]; };
    const auto there = [&](int field) { return step.fields[field] != NONE; };
    const Exact& x = value(0);
    const long columns = program_.columns.at(step.result);
    switch (step.code) {
      case Code::dense:
        return product(x, value(1), there(2) ? value(2) : Exact{}, columns, 1);
      case Code::lora: {
        const long rank = static_cast<long>(value(4).size()) / columns;
        return plus(product(x, value(1), there(2) ? value(2) : Exact{}, columns, 1),
                    product(product(x, value(3), {}, rank, value(5)[0]), value(4), {}, columns, 1));
      }
      case Code::attention:
        return attended(step, x, value(1), value(2));
      case Code::layer_norm:
        return normalise(there(1) ? plus(x, value(1)) : x, value(2), value(3), true);
      case Code::rms_norm:
        if (there(1)) values_[step.result + 1] = plus(x, value(1));
        return normalise(there(1) ? values_[step.result + 1] : x, value(2), {}, false);
      case Code::add:
        return plus(x, value(1));
      case Code::gelu:
        return each(x, gelu);
      case Code::gelu_tanh:
        return each(x, gelu_tanh);
      case Code::silu_gate: {
        Exact y = each(x, sigmoid);
        for (std::size_t i = 0; i < y.size(); ++i) y[i] *= x[i] * value(1)[i];
        return y;
      }
      case Code::rotary:
        return rotate(program_.rotary_sizes(step), x, value(1), value(2));
    }
    return {};
  }

  static Exact each(Exact x, double (*function)(double)) {
    for (double& element : x) element = function(element);
    return x;
  }

  static Exact plus(Exact x, const Exact& y) {
    for (std::size_t i = 0; i < x.size(); ++i) x[i] += y[i];
    return x;
  }

  static Exact product(const Exact& x, const Exact& weight, const Exact& bias, long outputs, double scale) {
    const std::size_t columns = static_cast<std::size_t>(outputs), inputs = weight.size() / columns;
    Exact y(x.size() / inputs * columns);
    for (std::size_t i = 0; i < y.size(); ++i) {
      const std::size_t row = i / columns, column = i % columns;
      if (!bias.empty()) y[i] = bias[column];
      for (std::size_t k = 0; k < inputs; ++k) y[i] += scale * x[row * inputs + k] * weight[column * inputs + k];
    }
    return y;
  }

  Exact attended(const Step& step, const Exact& query, const Exact& key, const Exact& value) {
    const long length = program_.length(), heads = long(step.fields[4]), key_heads = long(step.fields[5]);
    const long size = program_.columns.at(step.result) / heads;
    const int mask = static_cast<int>(step.fields[3]);
    const auto hidden = [&](long b, long q, long k) {
      if (mask == NONE) return 0.0;
      const Shape& shape = program_.shapes[static_cast<std::size_t>(mask)];
      return values_[mask][((shape[0] == 1 ? 0 : b) * shape[2] + (shape[2] == 1 ? 0 : q)) * length + k];
    };
    Exact y(query.size());
    for (long b = 0; b < program_.batch(); ++b)
      for (long h = 0; h < heads; ++h)
        for (long q = 0; q < length; ++q) {
          const long place = ((b * length + q) * heads + h) * size, seen = step.fields[6] != 0 ? q + 1 : length;
          const auto other = [&](long k) { return ((b * length + k) * key_heads + h / (heads / key_heads)) * size; };
          Exact p;
          double total = 0;
          for (long k = 0; k < seen; ++k) {
            double score = 0;
            for (long i = 0; i < size; ++i) score += query[place + i] * key[other(k) + i] / std::sqrt(double(size));
            p.push_back(std::exp(score + hidden(b, q, k)));
            total += p.back();
          }
          for (long k = 0; k < seen; ++k)
            for (long i = 0; i < size; ++i) y[place + i] += p[k] / total * value[other(k) + i];
        }
    return y;
  }

  const Program& program_;
  std::map<int, Exact> values_;
};

}  // namespace

Exact computed(const Program& program, const std::vector<Exact>& inputs) { return Reference(program, inputs).output(); }
