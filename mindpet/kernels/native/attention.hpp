// Attention of one head at a time, softmax(scale q k^T + mask) v, without keeping the probabilities.
#pragma once

#include <cmath>
#include <limits>

#include "gemm.hpp"
#include "kernels.hpp"

namespace MINDPET_ISA {

using Heads = mindpet::AttentionSizes;

constexpr long QUERY_BLOCK = 64;

// scores[rows, keys] = scale q k^T + mask for the queries first ... first + rows of an example.
inline void score(const Heads& sizes, long example, long first, long rows, const float* query, const float* keys,
                  float* scores) {
  const long width = sizes.heads * sizes.size;
  multiply_all(rows, sizes.keys, row_major(query, width), keys, sizes.size, scores, sizes.keys, false);
  for (long i = 0; i < rows; ++i) {
    float* row = scores + i * sizes.keys;
    const float* mask = sizes.mask == nullptr
                            ? nullptr
                            : sizes.mask + example * sizes.mask_batch + (first + i) * sizes.mask_query;
    for_vectors(sizes.keys, [&](long j, long count) {
      Floats value = load_upto(row + j, count) * sizes.scale;
      if (mask != nullptr) value += load_upto(mask + j, count);
      store_upto(row + j, value, count);
    });
    if (sizes.causal) {
      const long visible = std::max(0L, std::min(sizes.keys, first + i + 1 + sizes.keys - sizes.queries));
      std::fill(row + visible, row + sizes.keys, -std::numeric_limits<float>::infinity());
    }
  }
}

// Turns a row of scores into probabilities and returns the logarithm of the sum of their exponentials.
inline float softmax(float* row, long count) {
  float top = -1e30f;  // finite, so that a row in which everything is hidden gives zeros
  long j = 0;
  if (count >= WIDTH) {
    Floats tops = fill(top);
    for (; j + WIDTH <= count; j += WIDTH) tops = larger(tops, load(row + j));
    top = largest(tops);
  }
  for (; j < count; ++j) top = std::max(top, row[j]);
  Floats total = {};
  for_vectors(count, [&](long i, long size) {
    const Floats value = exponential(load_upto(row + i, size) - top);
    total += size == WIDTH ? value : first_of(value, size);
    store_upto(row + i, value, size);
  });
  const float whole = std::max(sum(total), 1e-37f);
  for_vectors(count, [&](long i, long size) { store_upto(row + i, load_upto(row + i, size) / whole, size); });
  return top + std::log(whole);
}

// Calls task(example, key head) in parallel.
template <class Task>
inline void for_key_heads(const Heads& sizes, Task task) {
  mindpet::parallel_for(sizes.batch * sizes.key_heads,
                        [&](long index) { task(index / sizes.key_heads, index % sizes.key_heads); });
}

// Calls task(head, first query, number of queries) for the queries that look at a key head, block by block.
template <class Task>
inline void for_query_blocks(const Heads& sizes, long key_head, Task task) {
  const long group = sizes.heads / sizes.key_heads;
  for (long head = key_head * group; head < (key_head + 1) * group; ++head) {
    for (long first = 0; first < sizes.queries; first += QUERY_BLOCK) {
      task(head, first, std::min(QUERY_BLOCK, sizes.queries - first));
    }
  }
}

inline float* floats(int slot, std::size_t count) {
  return static_cast<float*>(mindpet::scratch(slot, count * sizeof(float)));
}

// output = softmax(scale query key^T + mask) value; logs (batch, heads, queries) is kept for the gradient.
inline void attention(const Heads& sizes, const float* query, const float* key, const float* value, float* output,
                      float* logs) {
  const long width = sizes.heads * sizes.size, key_width = sizes.key_heads * sizes.size;
  for_key_heads(sizes, [&](long example, long key_head) {
    const long start = example * sizes.keys * key_width + key_head * sizes.size;
    float* keys = floats(1, packed_size(sizes.size, sizes.keys));
    float* values = floats(2, packed_size(sizes.keys, sizes.size));
    float* scores = floats(3, QUERY_BLOCK * sizes.keys);
    pack_all(transposed(key + start, key_width), sizes.size, sizes.keys, keys);
    pack_all(row_major(value + start, key_width), sizes.keys, sizes.size, values);
    for_query_blocks(sizes, key_head, [&](long head, long first, long rows) {
      const long place = (example * sizes.queries + first) * width + head * sizes.size;
      score(sizes, example, first, rows, query + place, keys, scores);
      float* log = logs + (example * sizes.heads + head) * sizes.queries + first;
      for (long i = 0; i < rows; ++i) log[i] = softmax(scores + i * sizes.keys, sizes.keys);
      multiply_all(rows, sizes.size, row_major(scores, sizes.keys), values, sizes.keys, output + place, width, false);
    });
  });
}

// The gradients by query, key and value. With the probabilities p computed anew,
//   dvalue = p^T doutput, ds = scale p (doutput value^T - sum(doutput output)), dquery = ds key, dkey = ds^T query.
inline void attention_back(const Heads& sizes, const float* query, const float* key, const float* value,
                           const float* output, const float* logs, const float* doutput, float* dquery, float* dkey,
                           float* dvalue) {
  const long width = sizes.heads * sizes.size, key_width = sizes.key_heads * sizes.size;
  for_key_heads(sizes, [&](long example, long key_head) {
    const long start = example * sizes.keys * key_width + key_head * sizes.size;
    float* keys = floats(1, packed_size(sizes.size, sizes.keys));
    float* values = floats(2, packed_size(sizes.size, sizes.keys));
    float* key_rows = floats(3, packed_size(sizes.keys, sizes.size));
    float* scores = floats(4, QUERY_BLOCK * sizes.keys);
    float* slopes = floats(5, QUERY_BLOCK * sizes.keys);
    float* block = floats(6, packed_size(QUERY_BLOCK, sizes.size));
    pack_all(transposed(key + start, key_width), sizes.size, sizes.keys, keys);
    pack_all(transposed(value + start, key_width), sizes.size, sizes.keys, values);
    pack_all(row_major(key + start, key_width), sizes.keys, sizes.size, key_rows);
    bool add = false;
    for_query_blocks(sizes, key_head, [&](long head, long first, long rows) {
      const long place = (example * sizes.queries + first) * width + head * sizes.size;
      const float* log = logs + (example * sizes.heads + head) * sizes.queries + first;
      score(sizes, example, first, rows, query + place, keys, scores);
      multiply_all(rows, sizes.keys, row_major(doutput + place, width), values, sizes.size, slopes, sizes.keys, false);
      for (long i = 0; i < rows; ++i) {
        Floats products = {};
        for_vectors(sizes.size, [&](long j, long count) {
          products += load_upto(output + place + i * width + j, count) * load_upto(doutput + place + i * width + j, count);
        });
        const float mean = sum(products);
        float* score_row = scores + i * sizes.keys;
        float* slope_row = slopes + i * sizes.keys;
        for_vectors(sizes.keys, [&](long j, long count) {
          const Floats probability = exponential(load_upto(score_row + j, count) - log[i]);
          store_upto(score_row + j, probability, count);
          store_upto(slope_row + j, probability * (load_upto(slope_row + j, count) - mean) * sizes.scale, count);
        });
      }
      multiply_all(rows, sizes.size, row_major(slopes, sizes.keys), key_rows, sizes.keys, dquery + place, width, false);
      pack_all(row_major(doutput + place, width), rows, sizes.size, block);
      multiply_all(sizes.keys, sizes.size, transposed(scores, sizes.keys), block, rows, dvalue + start, key_width, add);
      pack_all(row_major(query + place, width), rows, sizes.size, block);
      multiply_all(sizes.keys, sizes.size, transposed(slopes, sizes.keys), block, rows, dkey + start, key_width, add);
      add = true;
    });
  });
}

}  // namespace MINDPET_ISA
