#include "threads.hpp"

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include <sched.h>

namespace mindpet {
namespace {

// How often a thread looks for work before it sleeps: some 50 microseconds, the gap between two operations of a step.
constexpr int LOOKS = 2000;

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

int cores_of_process() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return CPU_COUNT(&allowed);
  return static_cast<int>(std::thread::hardware_concurrency());
}

// One call of parallel_for. A thread that comes late finds every task taken and never looks at `task`.
struct Round {
  Round(const std::function<void(long)>& task, long count) : task(task), count(count) {}

  const std::function<void(long)>& task;
  const long count;
  std::atomic<long> next{0};
  std::atomic<long> done{0};

  void work() {
    for (long i = next.fetch_add(1); i < count; i = next.fetch_add(1)) {
      task(i);
      done.fetch_add(1, std::memory_order_release);
    }
  }

  void wait() const {
    while (done.load(std::memory_order_acquire) != count) relax();
  }
};

class Pool {
 public:
  explicit Pool(int count) {
    for (int i = 1; i < count; ++i) helpers_.emplace_back([this] { help(); });
  }

  ~Pool() {
    announce(nullptr);
    for (std::thread& helper : helpers_) helper.join();
  }

  int size() const { return static_cast<int>(helpers_.size()) + 1; }

  void run(long count, const std::function<void(long)>& task) {
    const auto round = std::make_shared<Round>(task, count);
    announce(round);
    round->work();
    round->wait();
  }

 private:
  void announce(std::shared_ptr<Round> round) {
    {
      std::lock_guard<std::mutex> guard(mutex_);
      round_ = std::move(round);
      number_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
  }

  void help() {
    unsigned seen = 0;
    while (const std::shared_ptr<Round> round = await(seen)) round->work();
  }

  // Returns the round after number `seen`, which becomes its number; null asks the thread to leave.
  std::shared_ptr<Round> await(unsigned& seen) {
    for (int look = 0; look < LOOKS && number_.load(std::memory_order_acquire) == seen; ++look) relax();
    std::unique_lock<std::mutex> lock(mutex_);
    wake_.wait(lock, [&] { return number_.load(std::memory_order_relaxed) != seen; });
    seen = number_.load(std::memory_order_relaxed);
    return round_;
  }

  std::vector<std::thread> helpers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<unsigned> number_{0};
  std::shared_ptr<Round> round_;
};

std::mutex one_at_a_time;
std::unique_ptr<Pool> pool;

Pool& the_pool() {
  if (!pool) pool = std::make_unique<Pool>(cores_of_process());
  return *pool;
}

struct Buffer {
  void* memory = nullptr;
  std::size_t bytes = 0;
  ~Buffer() { std::free(memory); }
};

constexpr int SLOTS = 8;

}  // namespace

void set_threads(int count) {
  std::lock_guard<std::mutex> guard(one_at_a_time);
  pool.reset();
  pool = std::make_unique<Pool>(count > 0 ? count : cores_of_process());
}

int threads() {
  std::lock_guard<std::mutex> guard(one_at_a_time);
  return the_pool().size();
}

void parallel_for(long count, const std::function<void(long)>& task) {
  std::lock_guard<std::mutex> guard(one_at_a_time);
  Pool& workers = the_pool();
  if (count <= 1 || workers.size() == 1) {
    for (long i = 0; i < count; ++i) task(i);
    return;
  }
  workers.run(count, task);
}

void* scratch(int slot, std::size_t bytes) {
  thread_local Buffer buffers[SLOTS];
  Buffer& buffer = buffers[slot];
  if (buffer.bytes < bytes) {
    std::free(buffer.memory);
    buffer.bytes = (bytes + 63) / 64 * 64;
    buffer.memory = std::aligned_alloc(64, buffer.bytes);
    if (buffer.memory == nullptr) {
      buffer.bytes = 0;
      throw std::bad_alloc();
    }
  }
  return buffer.memory;
}

}  // namespace mindpet
