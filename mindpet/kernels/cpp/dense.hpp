// Dense layers, y = x weight^T + bias with weight (outputs, inputs), alone and with LoRA's branch (arXiv:2106.09685).
#pragma once

#include "brain.hpp"
#include "gemm.hpp"
#include "kept.hpp"
#include "loops.hpp"

namespace MINDPET_ISA {

inline const Term<FloatTiles> NOTHING = {{nullptr, 0, 0}, {nullptr, 0, 0}, 0};

// Rows of numbers in the form in which `Tiles` multiply them.
template <class Tiles>
typename Tiles::Left prepare(const float* rows, long count, long columns);

template <>
inline Matrix prepare<FloatTiles>(const float* rows, long, long columns) {
  return row_major(rows, columns);
}

// The same rows where they lie in this form already: as floats, or rounded to pairs.
template <class Tiles>
typename Tiles::Left prepared(const void* rows, long columns);

template <>
inline Matrix prepared<FloatTiles>(const void* rows, long columns) {
  return row_major(static_cast<const float*>(rows), columns);
}

#if defined(__AVX512BF16__)
template <>
inline PairMatrix prepare<PairTiles>(const float* rows, long count, long columns) {
  const long row = (columns + 1) / 2;
  auto* pairs = static_cast<Pair*>(mindpet::scratch(7, static_cast<std::size_t>(count * row) * sizeof(Pair)));
  to_pairs_all(rows, count, columns, pairs);
  return {pairs, row};
}

template <>
inline PairMatrix prepared<PairTiles>(const void* rows, long columns) {
  return {static_cast<const Pair*>(rows), (columns + 1) / 2};
}

inline void round_rows(const float* x, void* pairs, long rows, long columns) {
  to_pairs_all(x, rows, columns, static_cast<Pair*>(pairs));
}
#endif

// c[rows, columns] = a b for few rows and a b that was kept for the gradient.
inline void thin_product(long rows, long columns, Matrix a, Matrix b, long depth, float* c) {
  thin_product(rows, columns, a, b.data, depth, c);
}

#if defined(__AVX512BF16__)
inline void thin_product(long rows, long columns, Matrix a, PairMatrix b, long depth, float* c) {
  if (rows == 0 || columns == 0) return;
  const auto* halves = reinterpret_cast<const std::uint16_t*>(b.data);
  mindpet::parallel_for(panels_of(columns), [&](long index) {
    const long column = index * PANEL, wide = std::min(PANEL, columns - column);
    auto* panel = static_cast<float*>(mindpet::scratch(1, static_cast<std::size_t>(depth * PANEL) * sizeof(float)));
    for (long k = 0; k < depth; ++k) {
      for (long j = 0; j < PANEL; j += WIDTH) {
        const long count = std::max(0L, std::min(WIDTH, wide - j));
        store(panel + k * PANEL + j, KeptHalves::load(halves + 2 * k * b.row + column + j, count));
      }
    }
    multiply<FloatTiles>(rows, a, panel, depth, c + column, columns, wide, false);
  });
}
#endif

inline void add_bias(const Part& part, const float* bias, float* y, long columns) {
  for (long i = 0; i < part.rows; ++i) {
    float* row = y + (part.row + i) * columns + part.column;
    for_vectors(part.columns, [&](long j, long count) {
      store_upto(row + j, load_upto(row + j, count) + load_upto(bias + part.column + j, count), count);
    });
  }
}

template <class Tiles>
inline void dense_sum(typename Tiles::Left x, const float* weight, const float* bias, const Term<FloatTiles>& branch,
                      float* y, long rows, long outputs, long inputs) {
  const Term<Tiles> base = {x, transposed(weight, inputs), inputs};
  if (bias == nullptr) {
    product(rows, outputs, base, branch, y);
  } else {
    product(rows, outputs, base, branch, y, [&](const Part& part) { add_bias(part, bias, y, outputs); });
  }
}

template <class Tiles>
inline void dense(const float* x, const float* weight, const float* bias, float* y, long rows, long outputs,
                  long inputs) {
  dense_sum<Tiles>(prepare<Tiles>(x, rows, inputs), weight, bias, NOTHING, y, rows, outputs, inputs);
}

// dx = dy weight: all that a frozen layer hands back.
template <class Tiles>
inline void dense_back(const float* dy, const float* weight, float* dx, long rows, long outputs, long inputs) {
  const Term<Tiles> base = {prepare<Tiles>(dy, rows, outputs), row_major(weight, inputs), outputs};
  product(rows, inputs, base, NOTHING, dx);
}

// dweight = dy^T x, for a weight that is trained. Every panel of x meets all of dy: it is turned once.
inline void weight_back(const float* dy, const float* x, float* dweight, long rows, long outputs, long inputs) {
  auto* room = static_cast<float*>(mindpet::scratch(6, static_cast<std::size_t>(rows * outputs) * sizeof(float)));
  const Matrix turned = turn(dy, rows, outputs, room);
  product(outputs, inputs, Term<FloatTiles>{turned, row_major(x, inputs), rows}, NOTHING, dweight);
}

// sums[columns] = dy summed over its rows: the gradient of a bias that is trained beside a frozen weight.
inline void bias_back(const float* dy, float* sums, long rows, long columns) {
  for_rows_with_sums(rows, columns, {sums}, [&](long row, float* part) {
    for_vectors(columns, [&](long i, long size) { add_to(part + i, load_upto(dy + row * columns + i, size), size); });
  });
}

// to[rows, rank] = scale a b: the narrow products of LoRA's branch.
inline void scaled_product(long rows, long rank, float scale, const Term<FloatTiles>& term, float* to) {
  product(rows, rank, term, NOTHING, to, [&](const Part& part) {
    for (long i = 0; i < part.rows; ++i) {
      float* row = to + (part.row + i) * rank + part.column;
      for (long j = 0; j < part.columns; ++j) row[j] *= scale;
    }
  });
}

// y = x weight^T + bias + hidden lora_b^T with hidden = scale x lora_a^T (rows, rank), which is kept for the gradient.
// `prepared_x` is x in the form in which `Tiles` multiply it, and is kept as well.
template <class Tiles>
inline void lora(const float* x, const void* prepared_x, const float* weight, const float* bias, const float* lora_a,
                 const float* lora_b, float scale, float* y, float* hidden, long rows, long outputs, long inputs,
                 long rank) {
  scaled_product(rows, rank, scale, {row_major(x, inputs), transposed(lora_a, inputs), inputs}, hidden);
  const Term<FloatTiles> branch = {row_major(hidden, rank), transposed(lora_b, rank), rank};
  dense_sum<Tiles>(prepared<Tiles>(prepared_x, inputs), weight, bias, branch, y, rows, outputs, inputs);
}

// dhidden = scale dy lora_b; dx = dy weight + dhidden lora_a; dlora_a = dhidden^T x; dlora_b = dy^T hidden.
template <class Tiles>
inline void lora_back(const float* dy, const void* prepared_x, const float* hidden, const float* weight,
                      const float* lora_a, const float* lora_b, float scale, float* dx, float* dlora_a, float* dlora_b, float* dhidden,
                      long rows, long outputs, long inputs, long rank) {
  scaled_product(rows, rank, scale, {row_major(dy, outputs), row_major(lora_b, rank), outputs}, dhidden);
  const Term<Tiles> base = {prepare<Tiles>(dy, rows, outputs), row_major(weight, inputs), outputs};
  product(rows, inputs, base, Term<FloatTiles>{row_major(dhidden, rank), row_major(lora_a, inputs), rank}, dx);
  thin_product(rank, inputs, transposed(dhidden, rank), prepared<Tiles>(prepared_x, inputs), rows, dlora_a);
  auto* turned = static_cast<float*>(mindpet::scratch(6, static_cast<std::size_t>(rank * outputs) * sizeof(float)));
  thin_product(rank, outputs, transposed(hidden, rank), dy, rows, turned);
  for (long i = 0; i < outputs; ++i) {
    for (long j = 0; j < rank; ++j) dlora_b[i * rank + j] = turned[j * outputs + i];
  }
}

}  // namespace MINDPET_ISA
