// Matrix products c = a b with float32 sums, in tiles that stay in registers.
//
// `b` is copied into panels of PANEL columns, zeros beyond the last column, just before it is used. For a product with
// M rows this costs about 1 / M of the multiplications, and what was copied can never be out of date.
#pragma once

#include <algorithm>
#include <cstddef>

#include "simd.hpp"
#include "threads.hpp"

namespace MINDPET_ISA {

constexpr long TILE_ROWS = MINDPET_WIDTH == 16 ? 8 : 4;
constexpr long PANEL_VECTORS = 3;
constexpr long PANEL = PANEL_VECTORS * WIDTH;
constexpr long DEPTH = 768;  // a panel of so many rows stays in the second-level cache, a tile of `a` in the first
constexpr long BAND = 64;    // rows after which a finished piece of `c`, still in the cache, is handed on

// A matrix read element by element, so any two strides do.
struct Matrix {
  const float* data;
  long row;     // from one row to the next
  long column;  // from one column to the next

  Matrix from(long i, long j) const { return {data + i * row + j * column, row, column}; }
  Matrix turned() const { return {data, column, row}; }
};

inline Matrix row_major(const float* data, long columns) { return {data, columns, 1}; }

inline Matrix transposed(const float* data, long columns) { return {data, 1, columns}; }

// Turns WIDTH vectors, the rows of a square block, into its columns: log2(WIDTH) rounds of interleaving halves.
inline void transpose(Floats block[WIDTH]) {
#if MINDPET_WIDTH == 16
  const Words low = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
#else
  const Words low = {0, 8, 1, 9, 2, 10, 3, 11};
#endif
  const Words high = low + MINDPET_WIDTH / 2;
  Floats next[WIDTH];
  for (long size = 1; size < WIDTH; size *= 2) {
#pragma GCC unroll 8
    for (long i = 0; i < WIDTH / 2; ++i) {
      next[2 * i] = __builtin_shuffle(block[i], block[i + WIDTH / 2], low);
      next[2 * i + 1] = __builtin_shuffle(block[i], block[i + WIDTH / 2], high);
    }
    for (long i = 0; i < WIDTH; ++i) block[i] = next[i];
  }
}

// Reads b[k ... k + WIDTH, WIDTH columns] (as far as they exist) into one vector for each k.
inline void read_block(Matrix b, long depth, long columns, Floats block[WIDTH]) {
  if (b.column == 1) {
    for (long k = 0; k < WIDTH; ++k) block[k] = k < depth ? load_upto(b.data + k * b.row, columns) : Floats{};
  } else if (b.row == 1) {
    for (long j = 0; j < WIDTH; ++j) block[j] = j < columns ? load_upto(b.data + j * b.column, depth) : Floats{};
    transpose(block);
  } else {
    for (long k = 0; k < WIDTH; ++k) {
      block[k] = Floats{};
      for (long j = 0; k < depth && j < columns; ++j) block[k][j] = b.data[k * b.row + j * b.column];
    }
  }
}

// Copies b[rows, columns], row-major, to `room` column by column, in parallel.
inline Matrix turn(const float* b, long rows, long columns, float* room) {
  mindpet::parallel_for((columns + WIDTH - 1) / WIDTH, [&](long index) {
    const long column = index * WIDTH, wide = std::min(WIDTH, columns - column);
    Floats block[WIDTH];
    for (long row = 0; row < rows; row += WIDTH) {
      const long high = std::min(WIDTH, rows - row);
      read_block(transposed(b + row * columns + column, columns), wide, high, block);
      for (long j = 0; j < wide; ++j) store_upto(room + (column + j) * rows + row, block[j], high);
    }
  });
  return row_major(room, rows);
}

// Copies b[depth, columns <= PANEL] into a panel: depth rows of PANEL floats.
inline void pack(Matrix b, long depth, long columns, float* panel) {
  Floats block[WIDTH];
  for (long k = 0; k < depth; k += WIDTH) {
    const long deep = std::min(WIDTH, depth - k);
    for (long j = 0; j < PANEL; j += WIDTH) {
      const long wide = std::max(0L, std::min(WIDTH, columns - j));
      read_block(b.from(k, j), deep, wide, block);
      for (long i = 0; i < deep; ++i) store(panel + (k + i) * PANEL + j, block[i]);
    }
  }
}

// c[ROWS, VECTORS * WIDTH] = a panel, or + a panel. The rows of a packed panel follow each other at a distance of PANEL.
template <int ROWS, int VECTORS>
inline void tile(Matrix a, const float* panel, long depth, float* c, long c_row, bool add, long panel_row = PANEL) {
  Floats sums[ROWS][VECTORS];
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 3
    for (int j = 0; j < VECTORS; ++j) sums[i][j] = add ? load(c + i * c_row + j * WIDTH) : Floats{};
  for (long k = 0; k < depth; ++k) {
    Floats columns[VECTORS];
#pragma GCC unroll 3
    for (int j = 0; j < VECTORS; ++j) columns[j] = load(panel + k * panel_row + j * WIDTH);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
      const Floats element = fill(a.data[i * a.row + k * a.column]);
#pragma GCC unroll 3
      for (int j = 0; j < VECTORS; ++j) sums[i][j] += element * columns[j];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 3
    for (int j = 0; j < VECTORS; ++j) store(c + i * c_row + j * WIDTH, sums[i][j]);
}

// The product of any number of rows with a panel of VECTORS vectors, of which `columns` columns are wanted.
template <class Tiles, int VECTORS>
inline void multiply_vectors(long rows, typename Tiles::Left a, const typename Tiles::Element* panel, long depth,
                             float* c, long c_row, long columns, bool add) {
  constexpr long HEIGHT = VECTORS == 1 ? 2 * TILE_ROWS : TILE_ROWS;  // one vector leaves registers for more rows
  float border[HEIGHT * VECTORS * WIDTH];
  for (long i = 0; i < rows;) {
    const bool whole = rows - i >= HEIGHT;
    const long height = whole ? HEIGHT : 1;
    float* target = c + i * c_row;
    const bool direct = columns == VECTORS * WIDTH;
    float* out = direct ? target : border;
    const long out_row = direct ? c_row : VECTORS * WIDTH;
    for (long r = 0; !direct && add && r < height; ++r) std::copy_n(target + r * c_row, columns, out + r * out_row);
    if (whole) {
      Tiles::template tile<HEIGHT, VECTORS>(a.from(i, 0), panel, depth, out, out_row, add);
    } else {
      Tiles::template tile<1, VECTORS>(a.from(i, 0), panel, depth, out, out_row, add);
    }
    for (long r = 0; !direct && r < height; ++r) std::copy_n(out + r * out_row, columns, target + r * c_row);
    i += height;
  }
}

// How a product is computed: this one in float32 throughout.
struct FloatTiles {
  using Left = Matrix;
  using Element = float;
  static constexpr long DEPTH_OF_PANEL = DEPTH;

  static void pack(Matrix b, long depth, long columns, float* panel) { MINDPET_ISA::pack(b, depth, columns, panel); }

  template <int ROWS, int VECTORS>
  static void tile(Matrix a, const float* panel, long depth, float* c, long c_row, bool add) {
    MINDPET_ISA::tile<ROWS, VECTORS>(a, panel, depth, c, c_row, add);
  }
};

// c[rows, columns <= PANEL] = a panel, or + a panel.
template <class Tiles>
inline void multiply(long rows, typename Tiles::Left a, const typename Tiles::Element* panel, long depth, float* c,
                     long c_row, long columns, bool add) {
  if (columns > 2 * WIDTH) {
    multiply_vectors<Tiles, 3>(rows, a, panel, depth, c, c_row, columns, add);
  } else if (columns > WIDTH) {
    multiply_vectors<Tiles, 2>(rows, a, panel, depth, c, c_row, columns, add);
  } else {
    multiply_vectors<Tiles, 1>(rows, a, panel, depth, c, c_row, columns, add);
  }
}

inline long panels_of(long columns) { return (columns + PANEL - 1) / PANEL; }

// How many floats hold a matrix as panels.
inline std::size_t packed_size(long depth, long columns) {
  return static_cast<std::size_t>(panels_of(columns) * PANEL * depth);
}

// A matrix whose columns lie in panels, each of which has all `depth` rows.
struct Panels {
  const float* data;
  long depth;
};

// Copies b[depth, columns] to `room`, which holds `packed_size` floats.
inline Panels pack_all(Matrix b, long depth, long columns, float* room) {
  for (long j = 0; j < columns; j += PANEL) {
    pack(b.from(0, j), depth, std::min(PANEL, columns - j), room + j * depth);
  }
  return {room, depth};
}

// c[rows, columns] = a b, or + a b, with a[rows, depth] and the first `depth` rows of b, by the calling thread alone.
inline void multiply_all(long rows, long columns, long depth, Matrix a, Panels b, float* c, long c_row, bool add) {
  for (long j = 0; j < columns; j += PANEL) {
    multiply<FloatTiles>(rows, a, b.data + j * b.depth, depth, c + j, c_row, std::min(PANEL, columns - j), add);
  }
}

// A part of a result: what one task computes.
struct Part {
  long row, rows, column, columns;  // columns <= PANEL
};

// Calls task(part) in parallel for parts that cover [rows, columns]: a panel each, and shorter ones than all rows only
// where there are too few panels for the threads. A part begins at a multiple of BAND, so an element is computed in the
// same way whatever the number of threads.
template <class Task>
inline void for_parts(long rows, long columns, Task task) {
  if (rows == 0 || columns == 0) return;
  const long panels = panels_of(columns);
  const long bands = (rows + BAND - 1) / BAND;
  const long wanted = std::min(bands, (4 * mindpet::threads() + panels - 1) / panels);
  const long height = (bands + wanted - 1) / wanted * BAND;
  const long strips = (rows + height - 1) / height;
  mindpet::parallel_for(panels * strips, [&](long index) {
    const long row = index / panels * height;
    const long column = index % panels * PANEL;
    task(Part{row, std::min(height, rows - row), column, std::min(PANEL, columns - column)});
  });
}

// One summand of a product: a[rows, depth] b[depth, columns].
template <class Tiles>
struct Term {
  typename Tiles::Left a;
  Matrix b;
  long depth;
};

struct Nothing {
  void operator()(const Part&) const {}
};

// Puts a term's part into c[rows, columns], by the calling thread alone; without depth it is 0. `then(band)` is called
// for each BAND of rows once it is computed, while it is in the cache.
template <class Tiles, class Then = Nothing>
inline void compute_part(const Part& part, const Term<Tiles>& term, float* c, long columns, Then then = {}) {
  auto* panel = static_cast<typename Tiles::Element*>(mindpet::scratch(0, DEPTH * PANEL * sizeof(float)));
  for (long k = 0; k == 0 || k < term.depth; k += Tiles::DEPTH_OF_PANEL) {
    const long depth = std::min(Tiles::DEPTH_OF_PANEL, term.depth - k);
    Tiles::pack(term.b.from(k, part.column), depth, part.columns, panel);
    for (long row = part.row; row < part.row + part.rows; row += BAND) {
      const Part band = {row, std::min(BAND, part.row + part.rows - row), part.column, part.columns};
      float* target = c + row * columns + part.column;
      multiply<Tiles>(band.rows, term.a.from(row, k), panel, depth, target, columns, part.columns, k > 0);
      if (k + depth >= term.depth) then(band);
    }
  }
}

// c[rows, columns] = the product of `term`, plus that of `more` unless its depth is 0, in parallel. `finish(part)` is
// called for each piece of c once it is complete, while it is in the cache.
template <class Tiles, class Finish = Nothing>
inline void product(long rows, long columns, const Term<Tiles>& term, const Term<FloatTiles>& more, float* c,
                    Finish finish = {}) {
  for_parts(rows, columns, [&](const Part& part) {
    auto* panel = static_cast<float*>(mindpet::scratch(1, static_cast<std::size_t>(more.depth * PANEL) * sizeof(float)));
    pack(more.b.from(0, part.column), more.depth, part.columns, panel);
    compute_part(part, term, c, columns, [&](const Part& band) {
      float* target = c + band.row * columns + band.column;
      if (more.depth > 0) {
        multiply<FloatTiles>(band.rows, more.a.from(band.row, 0), panel, more.depth, target, columns, band.columns, true);
      }
      finish(band);
    });
  });
}

// c[rows, columns] = a b for few rows and a row-major b, in parallel. To copy b into panels would cost as much as to
// multiply: its rows are read where they are, but for the columns behind the last whole panel.
inline void thin_product(long rows, long columns, Matrix a, const float* b, long depth, float* c) {
  if (rows == 0 || columns == 0) return;
  mindpet::parallel_for(panels_of(columns), [&](long index) {
    const long column = index * PANEL;
    const Part part = {0, rows, column, std::min(PANEL, columns - column)};
    if (part.columns < PANEL || depth == 0) {
      compute_part(part, Term<FloatTiles>{a, row_major(b, columns), depth}, c, columns);
      return;
    }
    long i = 0;
    for (; i + TILE_ROWS <= rows; i += TILE_ROWS) {
      tile<TILE_ROWS, PANEL_VECTORS>(a.from(i, 0), b + column, depth, c + i * columns + column, columns, false, columns);
    }
    for (; i < rows; ++i) {
      tile<1, PANEL_VECTORS>(a.from(i, 0), b + column, depth, c + i * columns + column, columns, false, columns);
    }
  });
}

}  // namespace MINDPET_ISA
