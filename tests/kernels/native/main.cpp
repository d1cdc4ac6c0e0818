// Compares every kernel of every instruction set that this processor has with loops in double precision.
#include <cstdio>

#include "check.hpp"
#include "threads.hpp"

int main() {
  test_threads();
  test_block_layout();
  const Machine machines[] = {{"avx2", &mindpet::avx2_kernels},
                              {"avx512", &mindpet::avx512_kernels},
                              {"avx512_bf16", &mindpet::avx512_bf16_kernels}};
  for (const Machine& machine : machines) {
    if (!mindpet::runs_here(*machine.kernels)) {
      std::printf("%s: not on this processor\n", machine.name.c_str());
      continue;
    }
    const int before = failures();
    for (const auto test : {test_activations, test_norms, test_softmax, test_rotary, test_dense, test_attention,
                           test_block}) {
      test(machine);
    }
    std::printf("%s: %d failures\n", machine.name.c_str(), failures() - before);
  }
  mindpet::set_threads(1);  // ends the helpers
  std::printf("%d failures in all\n", failures());
  return failures() == 0 ? 0 : 1;
}
