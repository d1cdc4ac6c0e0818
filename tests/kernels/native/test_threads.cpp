#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.hpp"
#include "threads.hpp"

#if defined(__SANITIZE_THREAD__)
constexpr bool MAY_FORK = false;  // the thread sanitizer follows no threads that a forked process starts
#else
constexpr bool MAY_FORK = true;
#endif

namespace {

long sum_of_tasks(long count) {
  std::atomic<long> total{0};
  mindpet::parallel_for(count, [&](long i) { total += i + 1; });
  return total;
}

bool all_run_once(long count) {
  std::vector<std::atomic<int>> runs(static_cast<std::size_t>(count));
  mindpet::parallel_for(count, [&](long i) { ++runs[static_cast<std::size_t>(i)]; });
  for (const std::atomic<int>& run : runs) {
    if (run != 1) return false;
  }
  return true;
}

bool throws(long count) {
  try {
    mindpet::parallel_for(count, [](long i) {
      if (i % 3 == 1) throw std::runtime_error("as asked");
    });
  } catch (const std::runtime_error&) {
    return true;
  }
  return false;
}

// Several callers at once, as when a framework starts two operations on threads of its own.
bool callers_share() {
  std::atomic<int> right{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c) {
    callers.emplace_back([&] {
      for (int i = 0; i < 50; ++i) right += sum_of_tasks(20) == 210;
    });
  }
  for (std::thread& caller : callers) caller.join();
  return right == 200;
}

bool a_forked_process_computes() {
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);  // ends a child that hangs
    _exit(mindpet::threads() == 3 && sum_of_tasks(100) == 5050 ? 0 : 1);
  }
  int status = 1;
  waitpid(child, &status, 0);
  return status == 0 && sum_of_tasks(100) == 5050;
}

}  // namespace

void test_threads() {
  mindpet::set_threads(0);
  require(mindpet::threads() >= 1, "a thread for each core by default");
  for (int threads : {1, 2, 3}) {
    mindpet::set_threads(threads);
    for (long count : {0L, 1L, 2L, 7L, 1000L}) require(all_run_once(count), "each task runs once");
    require(throws(2) && throws(100), "an exception reaches the caller");
    require(sum_of_tasks(100) == 5050, "work goes on after an exception");
    require(callers_share(), "several callers get their results");
  }
  if (MAY_FORK) require(a_forked_process_computes(), "a forked process computes, and so does its parent");
  require(reinterpret_cast<std::size_t>(mindpet::scratch(0, 100)) % 64 == 0, "scratch memory is aligned");
}
