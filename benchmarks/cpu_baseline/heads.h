// Threads over the heads of all sequences, and the two loop orders a baseline is written in.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

constexpr int N = 64;  // head size

struct Shape {
  int64_t batch, tokens, heads;
};

// Calls work(b, h) for every head of every sequence, dealt out evenly to `threads` threads.
template <class Work>
void for_each_head(Shape s, int threads, Work work) {
  auto share = [&](int thread) {
    for (int64_t item = thread; item < s.batch * s.heads; item += threads) work(item / s.heads, item % s.heads);
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(share, thread);
  share(0);
  for (auto& other : others) other.join();
}

// d = e^w or, with `raw`, e^(-e^w).
inline float decay(float w, bool raw) { return raw ? std::exp(-std::exp(w)) : std::exp(w); }
