#include "threads.hpp"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

namespace mindpet {
namespace {

// How often a thread looks for work before it sleeps: some 50 microseconds, the gap between two operations of a step.
constexpr int LOOKS = 2000;

void relax() { __builtin_ia32_pause(); }

int usable_cores() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return CPU_COUNT(&allowed);
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

// One call of parallel_for. A thread that comes late finds every task taken and never looks at `task`.
class Round {
 public:
  Round(const std::function<void(long)>& task, long count) : task_(task), count_(count) {}

  void work() {
    for (long i = next_.fetch_add(1); i < count_; i = next_.fetch_add(1)) {
      try {
        if (!failed_.load(std::memory_order_relaxed)) task_(i);
      } catch (...) {
        if (!failed_.exchange(true)) failure_ = std::current_exception();
      }
      done_.fetch_add(1, std::memory_order_release);
    }
  }

  void wait() const {
    for (long look = 0; done_.load(std::memory_order_acquire) != count_; ++look) {
      if (look < LOOKS) {
        relax();
      } else {
        std::this_thread::yield();
      }
    }
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  const std::function<void(long)>& task_;
  const long count_;
  std::atomic<long> next_{0};
  std::atomic<long> done_{0};
  std::atomic<bool> failed_{false};
  std::exception_ptr failure_;  // written once, before `done_` reaches `count_`
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
int chosen_threads = 0;
Pool* pool = nullptr;  // never destroyed at exit, where other threads may still compute

// A forked process has the calling thread only: it leaves the pool, whose threads it does not have, and makes its own.
void survive_forks() {
  pthread_atfork([] { one_at_a_time.lock(); }, [] { one_at_a_time.unlock(); },
                 [] {
                   pool = nullptr;
                   one_at_a_time.unlock();
                 });
}

Pool& the_pool() {
  static const bool prepared = (survive_forks(), true);
  static_cast<void>(prepared);
  if (pool == nullptr) pool = new Pool(chosen_threads > 0 ? chosen_threads : usable_cores());
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
  delete pool;
  pool = nullptr;
  chosen_threads = count;
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
  } else {
    workers.run(count, task);
  }
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
