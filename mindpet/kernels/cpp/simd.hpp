// Vectors of floats, as wide as the instruction set that the including file is compiled for, and functions of them.
//
// GCC's vector extensions express everything but the bfloat16 product; the compiler turns them into AVX2 or AVX-512. A
// scalar beside a vector stands for all its elements.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#define MINDPET_WIDTH 16
#else
#define MINDPET_WIDTH 8
#endif

// For functions of vectors that GCC takes for too long to inline: called, they load their constants for each vector.
#define MINDPET_INLINE __attribute__((always_inline)) inline

namespace MINDPET_ISA {

constexpr long WIDTH = MINDPET_WIDTH;

typedef float Floats __attribute__((vector_size(MINDPET_WIDTH * 4)));
typedef std::uint32_t Words __attribute__((vector_size(MINDPET_WIDTH * 4)));

inline Floats load(const float* from) {
  Floats values;
  std::memcpy(&values, from, sizeof values);
  return values;
}

inline void store(float* to, Floats values) { std::memcpy(to, &values, sizeof values); }

inline Floats load_some(const float* from, long count) {
  Floats values = {};
  std::memcpy(&values, from, static_cast<std::size_t>(count) * sizeof(float));
  return values;
}

inline void store_some(float* to, Floats values, long count) {
  std::memcpy(to, &values, static_cast<std::size_t>(count) * sizeof(float));
}

// To take 0 away changes no number, -0 included, so that the compiler leaves it out; to add it turns -0 into 0.
inline Floats fill(float value) { return value - Floats{}; }

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

// The first `count` elements, and `rest` in the place of the others.
inline Floats first_of(Floats values, long count, float rest) {
  for (long i = count; i < WIDTH; ++i) values[i] = rest;
  return values;
}

inline float sum(Floats values) {
  float total = 0;
  for (long i = 0; i < WIDTH; ++i) total += values[i];
  return total;
}

inline float largest(Floats values) {
  float result = values[0];
  for (long i = 1; i < WIDTH; ++i) result = values[i] > result ? values[i] : result;
  return result;
}

inline Floats as_floats(Words bits) {
  Floats values;
  std::memcpy(&values, &bits, sizeof values);
  return values;
}

inline Words as_words(Floats values) {
  Words bits;
  std::memcpy(&bits, &values, sizeof bits);
  return bits;
}

inline Floats magnitude(Floats x) { return as_floats(as_words(x) & 0x7fffffffu); }

// e^x with a relative error below 3e-7: x = n ln 2 + r with |r| <= ln 2 / 2, and a Taylor polynomial for e^r.
// Below -87 it is 0, above 88 it stays at e^88; not-a-number stays what it is.
MINDPET_INLINE Floats exponential(Floats given) {
  constexpr float ROUNDER = 12582912.0f;  // 1.5 * 2^23: adding and taking it away rounds to an integer
  const Floats low = given < -87.0f ? fill(-87.0f) : given;
  const Floats x = low > 88.0f ? fill(88.0f) : low;
  const Floats shifted = x * 1.44269504f + ROUNDER;
  const Floats n = shifted - ROUNDER;
  const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts, the first exact in products
  Floats series = fill(1.0f / 5040.0f);
  series = series * r + 1.0f / 720.0f;
  series = series * r + 1.0f / 120.0f;
  series = series * r + 1.0f / 24.0f;
  series = series * r + 1.0f / 6.0f;
  series = series * r + 0.5f;
  series = series * r + 1.0f;
  series = series * r + 1.0f;
  const Words power = (as_words(shifted) - as_words(fill(ROUNDER)) + 127u) << 23;
  return given < -87.0f ? Floats{} : series * as_floats(power);
}

// The normal distribution, (1 + erf(x / sqrt(2))) / 2, with an absolute error below 2e-7 (Abramowitz and Stegun,
// formula 7.1.26, which gives the tail); `gauss` is e^(-x^2 / 2).
MINDPET_INLINE Floats normal_distribution(Floats x, Floats gauss) {
  const Floats t = 1.0f / (1.0f + 0.23164189f * magnitude(x));
  Floats series = fill(0.5307027145f);
  series = series * t - 0.7265760135f;
  series = series * t + 0.7107068705f;
  series = series * t - 0.142248368f;
  series = series * t + 0.127414796f;
  const Floats tail = series * t * gauss;
  return x < 0.0f ? tail : 1.0f - tail;
}

// Calls step(position, count) for each vector of a row: count is WIDTH, and less for a rest.
template <class Step>
inline void for_vectors(long length, Step step) {
  long i = 0;
  for (; i + WIDTH <= length; i += WIDTH) step(i, WIDTH);
  if (i < length) step(i, length - i);
}

inline Floats load_upto(const float* from, long count) { return count == WIDTH ? load(from) : load_some(from, count); }

inline void store_upto(float* to, Floats values, long count) {
  if (count == WIDTH) {
    store(to, values);
  } else {
    store_some(to, values, count);
  }
}

}  // namespace MINDPET_ISA
