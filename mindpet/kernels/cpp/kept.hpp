// How numbers are kept for a gradient: as they are, or rounded to bfloat16, which takes half the memory.
#pragma once

#include "loops.hpp"

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace MINDPET_ISA {

struct KeptFloats {
  using Element = float;

  static Floats load(const float* from, long count) { return load_upto(from, count); }
  static void store(float* to, Floats values, long count) { store_upto(to, values, count); }
};

#if defined(__AVX512BF16__)

struct KeptHalves {
  using Element = std::uint16_t;

  static Floats load(const std::uint16_t* from, long count) {
    std::uint16_t bits[WIDTH] = {};
    std::memcpy(bits, from, static_cast<std::size_t>(count) * sizeof *bits);
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bits));
    return reinterpret_cast<Floats>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
  }

  // Rounds ties to even.
  static void store(std::uint16_t* to, Floats values, long count) {
    const __m256bh halves = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(values));
    std::memcpy(to, &halves, static_cast<std::size_t>(count) * sizeof *to);
  }
};

#endif

// Keeps `count` numbers, on all threads.
template <class Kept>
inline void keep_all(const float* from, long count, void* kept) {
  auto* to = static_cast<typename Kept::Element*>(kept);
  for_elements(count, [&](long i, long size) { Kept::store(to + i, load_upto(from + i, size), size); });
}

}  // namespace MINDPET_ISA
