#include <initializer_list>

#include "kernels.hpp"

namespace mindpet {

bool runs_here(const Kernels& table) {
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (&table == &avx2_kernels) return avx2;
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return avx512 && (&table == &avx512_kernels || __builtin_cpu_supports("avx512bf16"));
}

const Kernels* kernels() {
  static const Kernels* const best = [] {
    const Kernels* result = nullptr;
    for (const Kernels* table : {&avx2_kernels, &avx512_kernels, &avx512_bf16_kernels}) {
      if (runs_here(*table)) result = table;
    }
    return result;
  }();
  return best;
}

}  // namespace mindpet
