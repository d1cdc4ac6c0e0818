#include <cmath>
#include <limits>

#include "check.hpp"

namespace {

using mindpet::AttentionSizes;

struct Inputs {
  Numbers query, key, value, doutput, mask;
};

struct Results {
  Exact output, dquery, dkey, dvalue;
};

// One query of one head: its probabilities, and from them its part of every result.
void attend(const AttentionSizes& s, const Inputs& in, long example, long head, long query, Results& to) {
  const long key_head = head / (s.heads / s.key_heads);
  const long place = ((example * s.queries + query) * s.heads + head) * s.size;
  const auto key_place = [&](long k) { return ((example * s.keys + k) * s.key_heads + key_head) * s.size; };
  Exact p(static_cast<std::size_t>(s.keys)), dp(p.size());
  double top = -std::numeric_limits<double>::max(), total = 0, mean = 0;
  for (long k = 0; k < s.keys; ++k) {
    for (long i = 0; i < s.size; ++i) p[k] += double(in.query[place + i]) * in.key[key_place(k) + i] * s.scale;
    if (s.mask != nullptr) p[k] += in.mask[example * s.mask_batch + query * s.mask_query + k];
    if (s.causal && k > query + s.keys - s.queries) p[k] = -std::numeric_limits<double>::infinity();
    top = std::max(top, p[k]);
  }
  for (double& probability : p) total += probability = std::exp(probability - top);
  for (long k = 0; k < s.keys; ++k) {
    p[k] = total > 0 ? p[k] / total : 0;
    for (long i = 0; i < s.size; ++i) {
      to.output[place + i] += p[k] * in.value[key_place(k) + i];
      to.dvalue[key_place(k) + i] += p[k] * in.doutput[place + i];
      dp[k] += double(in.doutput[place + i]) * in.value[key_place(k) + i];
    }
    mean += p[k] * dp[k];
  }
  for (long k = 0; k < s.keys; ++k) {
    for (long i = 0; i < s.size; ++i) {
      to.dquery[place + i] += p[k] * (dp[k] - mean) * s.scale * in.key[key_place(k) + i];
      to.dkey[key_place(k) + i] += p[k] * (dp[k] - mean) * s.scale * in.query[place + i];
    }
  }
}

Results attend_all(const AttentionSizes& s, const Inputs& in) {
  Results results{Exact(in.query.size()), Exact(in.query.size()), Exact(in.key.size()), Exact(in.key.size())};
  for (long example = 0; example < s.batch; ++example)
    for (long head = 0; head < s.heads; ++head)
      for (long query = 0; query < s.queries; ++query) attend(s, in, example, head, query, results);
  return results;
}

// With a mask of one row an example, or one a query: the first keys are hidden, in the last example all of them.
void test_sizes(const Machine& machine, AttentionSizes s, bool masked, float hidden = -1e4f) {
  const auto queries = static_cast<std::size_t>(s.batch * s.queries * s.heads * s.size);
  const auto keys = static_cast<std::size_t>(s.batch * s.keys * s.key_heads * s.size);
  Inputs in{random_numbers(queries, 1), random_numbers(keys, 2), random_numbers(keys, 3),
            random_numbers(queries, 4), {}};
  if (masked) {
    in.mask.assign(static_cast<std::size_t>(s.batch * s.queries * s.keys), 0.0f);
    for (std::size_t i = 0; i < in.mask.size(); ++i) {
      const auto key = static_cast<long>(i) % s.keys, example = static_cast<long>(i) / (s.queries * s.keys);
      if (key < (example == s.batch - 1 && hidden < -1e5f ? s.keys : s.keys / 3)) in.mask[i] = hidden;
    }
    s.mask = in.mask.data();
    s.mask_batch = s.queries * s.keys;
    s.mask_query = s.keys;
  }
  const Results expected = attend_all(s, in);
  const std::string name = " attention " + std::to_string(s.queries) + " x " + std::to_string(s.keys) +
                           ", size " + std::to_string(s.size) + (s.causal ? ", causal" : "") +
                           (masked ? ", masked" : "");
  for (const Keeping& keeping : keepings(machine)) {
    if (keeping.rounds && s.queries == 1) continue;  // few large probabilities leave small differences of large numbers
    check(keeping.name + name, {expected.output, expected.dquery, expected.dkey, expected.dvalue}, keeping.error, [&] {
      std::vector<Numbers> found = {blank(queries), blank(queries), blank(keys), blank(keys)};
      Numbers peaks = blank(static_cast<std::size_t>(2 * s.batch * s.heads * s.queries));
      machine.kernels->attention(s, in.query.data(), in.key.data(), in.value.data(), found[0].data(), peaks.data());
      const Numbers value = kept(machine, keeping, in.value);
      keeping.kernels->attention_back(s, in.query.data(), in.key.data(), value.data(), peaks.data(),
                                      in.doutput.data(), found[1].data(), found[2].data(), found[3].data());
      return found;
    });
  }
}

// The reference's own gradients, which the other tests trust.
void test_reference() {
  AttentionSizes s{1, 4, 2, 3, 2, 3, nullptr, 0, 0, true, 0.5f};
  Inputs in{random_numbers(24, 1), random_numbers(18, 2), random_numbers(18, 3), random_numbers(24, 4), {}};
  const Results results = attend_all(s, in);
  Numbers* moving[] = {&in.query, &in.key, &in.value};
  const Exact* gradients[] = {&results.dquery, &results.dkey, &results.dvalue};
  for (int i = 0; i < 3; ++i) {
    const Numbers start = *moving[i];
    for (std::size_t j = 0; j < start.size(); ++j) {
      double change = 0;
      for (float step : {0.01f, -0.01f}) {
        (*moving[i])[j] = start[j] + step;
        const Exact output = attend_all(s, in).output;
        for (std::size_t k = 0; k < output.size(); ++k) change += output[k] * in.doutput[k] * (step > 0 ? 50 : -50);
      }
      *moving[i] = start;
      require(std::abs(change - (*gradients[i])[j]) < 1e-3, "the reference's gradient of attention");
    }
  }
}

}  // namespace

void test_attention(const Machine& machine) {
  test_reference();
  const float HIDDEN = -std::numeric_limits<float>::infinity();
  for (bool causal : {false, true}) {
    for (bool masked : {false, true}) {
      test_sizes(machine, {1, 1, 1, 1, 1, 1, nullptr, 0, 0, causal, 1.0f}, masked);
      test_sizes(machine, {2, 3, 3, 5, 4, 7, nullptr, 0, 0, causal, 0.5f}, masked);
      test_sizes(machine, {2, 4, 2, 8, 7, 4, nullptr, 0, 0, causal, 0.3f}, masked);  // more queries than keys
      test_sizes(machine, {1, 4, 1, 16, 66, 70, nullptr, 0, 0, causal, 0.25f}, masked, HIDDEN);
      test_sizes(machine, {2, 2, 2, 33, 130, 50, nullptr, 0, 0, causal, 0.2f}, masked, HIDDEN);
      test_sizes(machine, {2, 2, 1, 64, 1, 65, nullptr, 0, 0, causal, 0.125f}, masked);
    }
  }
  test_sizes(machine, {0, 2, 1, 4, 3, 3, nullptr, 0, 0, false, 0.5f}, false);
}
