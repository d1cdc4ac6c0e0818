// The softmax of a row, and the cross entropy that follows it.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include "loops.hpp"

namespace MINDPET_ISA {

// What turns a row of scores into probabilities, exp(score - top) * inverse, once more when the gradient is computed.
struct Peak {
  float top, inverse;
};

inline void keep(Peak peak, float* two) {
  two[0] = peak.top;
  two[1] = peak.inverse;
}

inline Peak kept_peak(const float* two) { return {two[0], two[1]}; }

// to = exp(from - top of the row); `to` may be `from`, or null when only the peak is wanted. A row of -inf, in which
// everything is hidden, gives zeros.
inline Peak exponentials(const float* from, float* to, long count) {
  constexpr float LOWEST = std::numeric_limits<float>::lowest();
  Floats tops = fill(LOWEST);
  for_vectors(count, [&](long i, long size) {
    const Floats values = load_upto(from + i, size);
    tops = larger(tops, size == WIDTH ? values : first_of(values, size, LOWEST));
  });
  const float top = largest(tops);
  Floats total = {};
  for_vectors(count, [&](long i, long size) {
    const Floats value = exponential(load_upto(from + i, size) - top);
    total += size == WIDTH ? value : first_of(value, size, 0.0f);
    if (to != nullptr) store_upto(to + i, value, size);
  });
  const float whole = sum(total);
  return {top, whole == 0.0f ? 0.0f : 1.0f / whole};
}

constexpr std::int32_t IGNORED_LABEL = -1;

// losses[row] = -log softmax(logits[row])[label], 0 for an ignored label; `kept` (rows, 2) has the Peak of each row.
inline void cross_entropy(const float* logits, const std::int32_t* labels, float* losses, float* kept, long rows,
                          long classes) {
  for_rows(rows, classes, [&](long row) {
    const std::int32_t label = labels[row];
    losses[row] = 0.0f;
    keep({0.0f, 0.0f}, kept + 2 * row);
    if (label == IGNORED_LABEL) return;
    if (label < 0 || label >= classes) {
      throw std::out_of_range("label " + std::to_string(label) + "; accepted are 0 to " + std::to_string(classes - 1) +
                              " and " + std::to_string(IGNORED_LABEL) + ": correct the labels");
    }
    const Peak peak = exponentials(logits + row * classes, nullptr, classes);
    losses[row] = (peak.top - logits[row * classes + label]) - std::log(peak.inverse);
    keep(peak, kept + 2 * row);
  });
}

// dlogits = dloss (softmax(logits) - 1 at the label), 0 for an ignored row, whose Peak is 0.
inline void cross_entropy_back(const float* dlosses, const float* logits, const std::int32_t* labels, const float* kept,
                               float* dlogits, long rows, long classes) {
  for_rows(rows, classes, [&](long row) {
    float* gradient = dlogits + row * classes;
    if (labels[row] == IGNORED_LABEL) {
      std::fill_n(gradient, classes, 0.0f);
      return;
    }
    const Peak peak = kept_peak(kept + 2 * row);
    const float scale = peak.inverse * dlosses[row];
    for_vectors(classes, [&](long i, long size) {
      store_upto(gradient + i, exponential(load_upto(logits + row * classes + i, size) - peak.top) * scale, size);
    });
    gradient[labels[row]] -= dlosses[row];
  });
}

}  // namespace MINDPET_ISA
