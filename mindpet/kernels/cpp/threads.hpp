// A pool of threads that lives as long as the process.
#pragma once

#include <cstddef>
#include <functional>

namespace mindpet {

// Sets how many threads take part in what follows, the calling one included; 0 stands for one a core that this process
// may run on. Waits for work at hand.
void set_threads(int count);

int threads();

// Calls task(0) ... task(count - 1), each once, on all threads, and returns when all are done. Tasks are handed out one
// by one, so that a slow core does fewer. When tasks throw, the rest may be left out, and one of the exceptions is
// thrown here. One call runs at a time; others wait. A task must not call this function.
void parallel_for(long count, const std::function<void(long)>& task);

// Memory of the calling thread that holds at least `bytes`, aligned to 64; what it held before is lost. `slot` (0 to 7)
// tells apart the buffers that are in use together.
void* scratch(int slot, std::size_t bytes);

}  // namespace mindpet
