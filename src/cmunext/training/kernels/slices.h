// Work shared between PyTorch's own threads, and sums over pixels that do not depend on how many threads there are.
#pragma once

#include <algorithm>
#include <vector>

#include "numbers.h"

// `count` pixels, cut into pieces and these into slices. begin(slice) gives what is called with each piece: its first pixel and how many.
// One thread goes through a slice in order, so that sums a slice are always the same.
template <class Begin>
void each_slice(int slices, long count, long piece, int threads, const Begin& begin) {
  const long pieces = (count + piece - 1) / piece;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int slice = 0; slice < slices; slice++) {
    auto take = begin(slice);
    const long end = std::min(count, pieces * (slice + 1) / slices * piece);
    for (long first = pieces * slice / slices * piece; first < end; first += piece) take(first, int(std::min(piece, end - first)));
  }
}

// Sums a column, in float64, each slice's apart.
class Sums {
  int slices, width;
  std::vector<double> numbers;

 public:
  Sums(int slices, int width) : slices(slices), width(width), numbers(size_t(slices) * width) {}

  template <int L>
  void add(int slice, int column, Vector<L> part) {
    double* to = numbers.data() + size_t(slice) * width + column;
    for (int lane = 0; lane < L; lane++) to[lane] += part[lane];
  }
  double total(int column) const {
    double sum = 0;
    for (int slice = 0; slice < slices; slice++) sum += numbers[size_t(slice) * width + column];
    return sum;
  }
};
