// Threads that share the work of a step. Nobody waits for a thread that the system has not let run: whoever is there takes the next piece.
#pragma once

#include <atomic>
#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

class Threads {
  static constexpr int PATIENCE = 4000;  // looks for the next work before a helper goes to sleep: some 50 microseconds

  std::vector<std::thread> helpers;
  std::mutex mutex;
  std::condition_variable begun, left;
  const std::function<void(int, int)>* work = nullptr;
  std::exception_ptr failure;  // the first of a round
  int count = 0, busy = 0;
  bool ending = false;
  std::atomic<int> next{0}, round{0};

 public:
  // As many as the system gives, up to `number`.
  explicit Threads(int number) {
    try {
      for (int thread = 1; thread < number; thread++) helpers.emplace_back([this, thread] { help(thread); });
    } catch (const std::system_error&) {
    }
  }

  ~Threads() {
    {
      std::lock_guard<std::mutex> lock(mutex);
      ending = true;
      round++;
    }
    begun.notify_all();
    for (std::thread& helper : helpers) helper.join();
  }

  int number() const { return int(helpers.size()) + 1; }

  // wanted(n, thread) for every n < pieces, with `thread` from 0 to number() - 1. Comes back when all is done; throws what one of them threw.
  void share(int pieces, const std::function<void(int, int)>& wanted) {
    if (helpers.empty() || pieces < 2) {
      for (int n = 0; n < pieces; n++) wanted(n, 0);
      return;
    }
    {
      std::lock_guard<std::mutex> lock(mutex);
      work = &wanted, count = pieces, next = 0;
      round++;
    }
    begun.notify_all();
    take(wanted, pieces, 0);
    std::unique_lock<std::mutex> lock(mutex);
    work = nullptr;  // who comes late finds nothing
    left.wait(lock, [this] { return busy == 0; });
    if (failure) std::rethrow_exception(std::exchange(failure, nullptr));
  }

 private:
  void take(const std::function<void(int, int)>& wanted, int pieces, int thread) {
    try {
      for (int n; (n = next++) < pieces;) wanted(n, thread);
    } catch (...) {
      std::lock_guard<std::mutex> lock(mutex);
      if (!failure) failure = std::current_exception();
    }
  }

  void help(int thread) {
    for (int seen = 0;;) {
      for (int look = 0; look < PATIENCE && round == seen; look++) pause();
      std::unique_lock<std::mutex> lock(mutex);
      begun.wait(lock, [&] { return round != seen; });
      seen = round;
      if (ending) return;
      if (!work) continue;
      const std::function<void(int, int)>& mine = *work;
      const int pieces = count;
      busy++;
      lock.unlock();
      take(mine, pieces, thread);
      lock.lock();
      if (--busy == 0) left.notify_one();
    }
  }

  static void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }
};
