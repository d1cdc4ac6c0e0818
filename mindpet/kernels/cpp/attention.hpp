// Attention of one head at a time, softmax(scale q k^T + mask) v, without keeping the probabilities.
#pragma once

#include <limits>

#include "gemm.hpp"
#include "kept.hpp"
#include "kernels.hpp"
#include "softmax.hpp"

namespace MINDPET_ISA {

using mindpet::AttentionSizes;

constexpr long QUERY_BLOCK = 64;

// What neighbouring queries of a head look at.
struct QueryBlock {
  long example, head, key_head;
  long first, rows;  // of the queries
  long keys;         // as many of the first keys are looked at by at least one of them
  long place;        // of the block in queries, outputs and their gradients
  long kept;         // of the block in what is kept for the gradient
};

inline long query_width(const AttentionSizes& sizes) { return sizes.heads * sizes.size; }

inline long key_width(const AttentionSizes& sizes) { return sizes.key_heads * sizes.size; }

// How many keys a query sees.
inline long visible_keys(const AttentionSizes& sizes, long query) {
  if (!sizes.causal) return sizes.keys;
  return std::max(0L, std::min(sizes.keys, query + 1 + sizes.keys - sizes.queries));
}

// Calls task(example, key head, place of the head in keys and values) in parallel.
template <class Task>
inline void for_key_heads(const AttentionSizes& sizes, Task task) {
  mindpet::parallel_for(sizes.batch * sizes.key_heads, [&](long index) {
    const long example = index / sizes.key_heads, key_head = index % sizes.key_heads;
    task(example, key_head, example * sizes.keys * key_width(sizes) + key_head * sizes.size);
  });
}

// Calls task(block) for the queries that look at a key head, block by block.
template <class Task>
inline void for_query_blocks(const AttentionSizes& sizes, long example, long key_head, Task task) {
  const long group = sizes.heads / sizes.key_heads;
  for (long head = key_head * group; head < (key_head + 1) * group; ++head) {
    for (long first = 0; first < sizes.queries; first += QUERY_BLOCK) {
      const long rows = std::min(QUERY_BLOCK, sizes.queries - first);
      const long place = (example * sizes.queries + first) * query_width(sizes) + head * sizes.size;
      const long kept = 2 * ((example * sizes.heads + head) * sizes.queries + first);
      task(QueryBlock{example, head, key_head, first, rows, visible_keys(sizes, first + rows - 1), place, kept});
    }
  }
}

// scores[rows, keys of the block] = scale q k^T + mask.
inline void score(const AttentionSizes& sizes, const QueryBlock& block, Matrix query, Panels keys, float* scores) {
  multiply_all(block.rows, block.keys, sizes.size, query, keys, scores, block.keys, false);
  for (long i = 0; i < block.rows; ++i) {
    float* row = scores + i * block.keys;
    const float* mask = sizes.mask == nullptr
                            ? nullptr
                            : sizes.mask + block.example * sizes.mask_batch + (block.first + i) * sizes.mask_query;
    for_vectors(block.keys, [&](long j, long count) {
      Floats value = load_upto(row + j, count) * sizes.scale;
      if (mask != nullptr) value += load_upto(mask + j, count);
      store_upto(row + j, value, count);
    });
    std::fill(row + visible_keys(sizes, block.first + i), row + block.keys, -std::numeric_limits<float>::infinity());
  }
}

inline float* floats(int slot, std::size_t count) {
  return static_cast<float*>(mindpet::scratch(slot, count * sizeof(float)));
}

// output = softmax(scale query key^T + mask) value; `kept` (batch, heads, queries, 2) has the Peak of each row.
inline void attention(const AttentionSizes& sizes, const float* query, const float* key, const float* value,
                      float* output, float* kept) {
  for_key_heads(sizes, [&](long example, long key_head, long start) {
    const Panels keys = pack_all(transposed(key + start, key_width(sizes)), sizes.size, sizes.keys,
                                 floats(1, packed_size(sizes.size, sizes.keys)));
    const Panels values = pack_all(row_major(value + start, key_width(sizes)), sizes.keys, sizes.size,
                                   floats(2, packed_size(sizes.keys, sizes.size)));
    float* scores = floats(3, static_cast<std::size_t>(QUERY_BLOCK * sizes.keys));
    for_query_blocks(sizes, example, key_head, [&](const QueryBlock& block) {
      score(sizes, block, row_major(query + block.place, query_width(sizes)), keys, scores);
      for (long i = 0; i < block.rows; ++i) {
        float* row = scores + i * block.keys;
        const Peak peak = exponentials(row, row, block.keys);
        for_vectors(block.keys, [&](long j, long count) {
          store_upto(row + j, load_upto(row + j, count) * peak.inverse, count);
        });
        keep(peak, kept + block.kept + 2 * i);
      }
      multiply_all(block.rows, sizes.size, block.keys, row_major(scores, block.keys), values, output + block.place,
                   query_width(sizes), false);
    });
  });
}

// Rows of one head that were kept: floats where they lie, others in memory that the next call overwrites.
template <class Kept>
inline Matrix rows_of_head(const typename Kept::Element* from, long rows, long size, long width) {
  float* room = floats(7, static_cast<std::size_t>(rows * size));
  for (long i = 0; i < rows; ++i) {
    for_vectors(size, [&](long j, long count) {
      store_upto(room + i * size + j, Kept::load(from + i * width + j, count), count);
    });
  }
  return row_major(room, size);
}

template <>
inline Matrix rows_of_head<KeptFloats>(const float* from, long, long, long width) {
  return row_major(from, width);
}

// Turns scores into probabilities p, and slopes, which hold doutput value^T, into ds = scale p (slopes - sum(p slopes)).
inline void slopes_of_scores(const AttentionSizes& sizes, const QueryBlock& block, const float* kept, float* scores,
                             float* slopes) {
  for (long i = 0; i < block.rows; ++i) {
    const Peak peak = kept_peak(kept + block.kept + 2 * i);
    float* score_row = scores + i * block.keys;
    float* slope_row = slopes + i * block.keys;
    Floats products = {};
    for_vectors(block.keys, [&](long j, long count) {
      const Floats probability = exponential(load_upto(score_row + j, count) - peak.top) * peak.inverse;
      store_upto(score_row + j, probability, count);
      products += probability * load_upto(slope_row + j, count);  // 0 beyond `count`
    });
    const float mean = sum(products);
    for_vectors(block.keys, [&](long j, long count) {
      const Floats slope = load_upto(slope_row + j, count) - mean;
      store_upto(slope_row + j, load_upto(score_row + j, count) * slope * sizes.scale, count);
    });
  }
}

// The gradients by query, key and value, with the probabilities p and ds as above:
//   dvalue = p^T doutput, dquery = ds key, dkey = ds^T query.
// Rounded queries and keys would move the exponents of p, and its errors grow with the scores: they stay exact.
template <class Kept>
inline void attention_back(const AttentionSizes& sizes, const float* query, const float* key, const void* kept_value,
                           const float* kept, const float* doutput, float* dquery, float* dkey, float* dvalue) {
  const auto* value = static_cast<const typename Kept::Element*>(kept_value);
  const long width = query_width(sizes), narrow = key_width(sizes);
  for_key_heads(sizes, [&](long example, long key_head, long start) {
    const std::size_t room = packed_size(sizes.size, sizes.keys);
    const Matrix head_values = rows_of_head<Kept>(value + start, sizes.keys, sizes.size, narrow);
    const Panels values = pack_all(head_values.turned(), sizes.size, sizes.keys, floats(2, room));
    const Matrix head_keys = row_major(key + start, narrow);
    const Panels keys = pack_all(head_keys.turned(), sizes.size, sizes.keys, floats(1, room));
    const Panels key_rows = pack_all(head_keys, sizes.keys, sizes.size, floats(3, packed_size(sizes.keys, sizes.size)));
    float* scores = floats(4, static_cast<std::size_t>(QUERY_BLOCK * sizes.keys));
    float* slopes = floats(5, static_cast<std::size_t>(QUERY_BLOCK * sizes.keys));
    float* rows = floats(6, packed_size(QUERY_BLOCK, sizes.size));
    for (long k = 0; k < sizes.keys; ++k) {
      std::fill_n(dkey + start + k * narrow, sizes.size, 0.0f);
      std::fill_n(dvalue + start + k * narrow, sizes.size, 0.0f);
    }
    for_query_blocks(sizes, example, key_head, [&](const QueryBlock& block) {
      const Matrix query_rows = row_major(query + block.place, width);
      const Matrix gradient = row_major(doutput + block.place, width);
      score(sizes, block, query_rows, keys, scores);
      multiply_all(block.rows, block.keys, sizes.size, gradient, values, slopes, block.keys, false);
      slopes_of_scores(sizes, block, kept, scores, slopes);
      multiply_all(block.rows, sizes.size, block.keys, row_major(slopes, block.keys), key_rows, dquery + block.place,
                   width, false);
      multiply_all(block.keys, sizes.size, block.rows, transposed(scores, block.keys),
                   pack_all(gradient, block.rows, sizes.size, rows), dvalue + start, narrow, true);
      multiply_all(block.keys, sizes.size, block.rows, transposed(slopes, block.keys),
                   pack_all(query_rows, block.rows, sizes.size, rows), dkey + start, narrow, true);
    });
  });
}

}  // namespace MINDPET_ISA
