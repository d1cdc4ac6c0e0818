// Loops over the elements and rows of a tensor, on all threads.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "simd.hpp"
#include "threads.hpp"

namespace MINDPET_ISA {

constexpr long CHUNK = 16384;  // floats in a task of an elementwise operation
constexpr long GROUP = 32;     // rows whose sums a task adds up

// Calls step(position, count) for each vector of `count` elements.
template <class Step>
inline void for_elements(long count, Step step) {
  mindpet::parallel_for((count + CHUNK - 1) / CHUNK, [&](long task) {
    const long first = task * CHUNK;
    for_vectors(std::min(CHUNK, count - first), [&](long i, long size) { step(first + i, size); });
  });
}

inline void add(const float* x, const float* y, float* sum, long count) {
  for_elements(count, [&](long i, long size) {
    store_upto(sum + i, load_upto(x + i, size) + load_upto(y + i, size), size);
  });
}

template <class Step>
inline void for_rows(long rows, long columns, Step step) {
  const long together = std::max(1L, CHUNK / std::max(1L, columns));
  mindpet::parallel_for((rows + together - 1) / together, [&](long task) {
    const long last = std::min(rows, (task + 1) * together);
    for (long row = task * together; row < last; ++row) step(row);
  });
}

// Calls step(row, sums) for each row, which adds to `columns` sums for each of `totals`, and leaves their totals there.
// The order of summation does not depend on the number of threads.
template <class Step>
inline void for_rows_with_sums(long rows, long columns, std::initializer_list<float*> totals, Step step) {
  const long groups = (rows + GROUP - 1) / GROUP;
  const long width = columns * static_cast<long>(totals.size());
  auto* all = static_cast<float*>(mindpet::scratch(7, static_cast<std::size_t>(groups * width) * sizeof(float)));
  mindpet::parallel_for(groups, [&](long group) {
    float* sums = all + group * width;
    std::fill_n(sums, width, 0.0f);
    const long last = std::min(rows, (group + 1) * GROUP);
    for (long row = group * GROUP; row < last; ++row) step(row, sums);
  });
  const float* part = all;
  for (float* total : totals) {
    std::fill_n(total, columns, 0.0f);
    for (long group = 0; group < groups; ++group) {
      for (long i = 0; i < columns; ++i) total[i] += part[group * width + i];
    }
    part += columns;
  }
}

inline void add_to(float* sums, Floats values, long count) { store_upto(sums, load_upto(sums, count) + values, count); }

}  // namespace MINDPET_ISA
