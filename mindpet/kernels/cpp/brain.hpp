// Products of bfloat16 numbers with float32 sums, on processors with AVX512-BF16: twice the rate of float32.
//
// A pair holds two neighbours along the depth of a product, the first in its lower half.
#pragma once

#include "gemm.hpp"

#if defined(__AVX512BF16__)

#include <immintrin.h>

namespace MINDPET_ISA {

using Pair = std::uint32_t;

struct PairMatrix {
  const Pair* data;
  long row;

  PairMatrix from(long i, long k) const { return {data + i * row + k / 2, row}; }
};

// Rounds 2 * WIDTH numbers to bfloat16, ties to even, those of `first` in the lower half.
inline Words rounded(Floats first, Floats second) {
  const __m512bh both = _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(second), reinterpret_cast<__m512>(first));
  Words words;
  std::memcpy(&words, &both, sizeof words);
  return words;
}

// Rounds a row of floats to pairs; an odd last column is paired with zero.
inline void to_pairs(const float* from, long columns, Pair* to) {
  for (long j = 0; j < columns; j += 2 * WIDTH) {
    const long count = std::min(2 * WIDTH, columns - j);
    const long second = std::max(0L, count - WIDTH);
    const Words pairs = rounded(load_upto(from + j, count - second), load_upto(from + j + count - second, second));
    std::memcpy(to + j / 2, &pairs, static_cast<std::size_t>(count + 1) / 2 * sizeof(Pair));
  }
}

inline void to_pairs_all(const float* from, long rows, long columns, Pair* to) {
  const long row = (columns + 1) / 2;
  mindpet::parallel_for((rows + BAND - 1) / BAND, [&](long task) {
    for (long i = task * BAND; i < std::min(rows, (task + 1) * BAND); ++i) {
      to_pairs(from + i * columns, columns, to + i * row);
    }
  });
}

// As `pack`, with the rows of the panel paired: (depth + 1) / 2 rows of PANEL pairs.
inline void pack_pairs(Matrix b, long depth, long columns, Pair* panel) {
  Floats block[WIDTH];
  std::uint16_t places[2 * WIDTH];  // interleaves the two halves of what `rounded` returns
  for (long i = 0; i < 2 * WIDTH; ++i) places[i] = static_cast<std::uint16_t>(i / 2 + i % 2 * WIDTH);
  const __m512i interleaved = _mm512_loadu_si512(places);
  for (long k = 0; k < depth; k += WIDTH) {
    const long deep = std::min(WIDTH, depth - k);
    for (long j = 0; j < PANEL; j += WIDTH) {
      const long wide = std::max(0L, std::min(WIDTH, columns - j));
      read_block(b.from(k, j), deep, wide, block);  // zeros beyond `deep`
      for (long i = 0; i < deep; i += 2) {
        const Words halves = rounded(block[i], block[i + 1]);
        const __m512i pairs = _mm512_permutexvar_epi16(interleaved, reinterpret_cast<__m512i>(halves));
        _mm512_storeu_si512(panel + (k + i) / 2 * PANEL + j, pairs);
      }
    }
  }
}

template <int ROWS, int VECTORS>
inline void tile_pairs(PairMatrix a, const Pair* panel, long depth, float* c, long c_row, bool add) {
  __m512 sums[ROWS][VECTORS];
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 3
    for (int j = 0; j < VECTORS; ++j) {
      sums[i][j] = add ? _mm512_loadu_ps(c + i * c_row + j * WIDTH) : _mm512_setzero_ps();
    }
  for (long k = 0; k < (depth + 1) / 2; ++k) {
    __m512bh columns[VECTORS];
#pragma GCC unroll 3
    for (int j = 0; j < VECTORS; ++j) {
      columns[j] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(panel + k * PANEL + j * WIDTH));
    }
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
      const __m512bh element =
          reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(a.data[i * a.row + k])));
#pragma GCC unroll 3
      for (int j = 0; j < VECTORS; ++j) sums[i][j] = _mm512_dpbf16_ps(sums[i][j], element, columns[j]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 3
    for (int j = 0; j < VECTORS; ++j) _mm512_storeu_ps(c + i * c_row + j * WIDTH, sums[i][j]);
}

struct PairTiles {
  using Left = PairMatrix;
  using Element = Pair;
  static constexpr long DEPTH_OF_PANEL = 2 * DEPTH;

  static void pack(Matrix b, long depth, long columns, Pair* panel) { pack_pairs(b, depth, columns, panel); }

  template <int ROWS, int VECTORS>
  static void tile(PairMatrix a, const Pair* panel, long depth, float* c, long c_row, bool add) {
    tile_pairs<ROWS, VECTORS>(a, panel, depth, c, c_row, add);
  }
};

}  // namespace MINDPET_ISA

#endif
