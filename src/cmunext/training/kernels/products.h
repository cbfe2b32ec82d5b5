// Products of small matrices in float32, some rows and columns at a time in registers.
#pragma once

#include <algorithm>
#include <vector>

#include "numbers.h"

// A matrix that is read by broadcasting its entries: entry (i, k) lies at from[i * row + k * step].
struct Entries {
  const float* from;
  long row, step;
};

// A matrix that is read by vectors: row k of it at from + k * pitch, or in `Panels` where the pitch is 0.
struct Rows {
  const float* from;
  long pitch;
};

// to[i][j] = start[i][j] + sum over k < count of a(i, k) b[k][j], i < ROWS, j < VECTORS * L
template <int L, int ROWS, int VECTORS>
static inline __attribute__((always_inline)) void multiply_block(Entries a, Rows b, int count, Rows start, float* to, long pitch) {
  Vector<L> sum[ROWS][VECTORS];
  UNROLL for (int i = 0; i < ROWS; i++) UNROLL for (int j = 0; j < VECTORS; j++) sum[i][j] = load<L>(start.from + i * start.pitch + j * L);
  for (int k = 0; k < count; k++) {
    Vector<L> right[VECTORS];
    UNROLL for (int j = 0; j < VECTORS; j++) right[j] = load<L>(b.from + k * b.pitch + j * L);
    UNROLL for (int i = 0; i < ROWS; i++) {
      const Vector<L> left = all<L>(a.from[i * a.row + k * a.step]);
      UNROLL for (int j = 0; j < VECTORS; j++) sum[i][j] += left * right[j];
    }
  }
  UNROLL for (int i = 0; i < ROWS; i++) UNROLL for (int j = 0; j < VECTORS; j++) store<L>(to + i * pitch + j * L, sum[i][j]);
}

// The rows that are left over when ROWS do not divide them.
template <int L, int ROWS, int VECTORS>
static inline void multiply_rest(int rows, Entries a, Rows b, int count, Rows start, float* to, long pitch) {
  if constexpr (ROWS > 0) {
    if (rows == ROWS) return multiply_block<L, ROWS, VECTORS>(a, b, count, start, to, pitch);
    multiply_rest<L, ROWS - 1, VECTORS>(rows, a, b, count, start, to, pitch);
  }
}

template <int L, int VECTORS>
__attribute__((noinline)) void multiply_columns(int rows, Entries a, Rows b, int count, Rows start, float* to, long pitch) {
  constexpr int ROWS = REGISTERS / VECTORS;
  int i = 0;
  for (; i + ROWS <= rows; i += ROWS) {
    multiply_block<L, ROWS, VECTORS>({a.from + i * a.row, a.row, a.step}, b, count, {start.from + i * start.pitch, start.pitch}, to + i * pitch, pitch);
  }
  multiply_rest<L, ROWS - 1, VECTORS>(rows - i, {a.from + i * a.row, a.row, a.step}, b, count, {start.from + i * start.pitch, start.pitch},
                                      to + i * pitch, pitch);
}

constexpr int TOGETHER = WIDEST == 16 ? 4 : 2;  // vectors of columns at a time, at most

// to[i][j] = start[i][j] + sum over k < count of a(i, k) b[k][j] for i < rows, j < columns, which L divides.
template <int L>
void multiply(int rows, int columns, Entries a, Rows b, int count, Rows start, float* to, long pitch) {
  for (int j = 0; j < columns;) {
    const int vectors = std::min(TOGETHER, (columns - j) / L);
    const Rows right{b.from + (b.pitch ? j : long(j) * count), b.pitch ? b.pitch : vectors * L}, first{start.from + j, start.pitch};
    if (vectors == 4) multiply_columns<L, 4>(rows, a, right, count, first, to + j, pitch);
    if (vectors == 3) multiply_columns<L, 3>(rows, a, right, count, first, to + j, pitch);
    if (vectors == 2) multiply_columns<L, 2>(rows, a, right, count, first, to + j, pitch);
    if (vectors == 1) multiply_columns<L, 1>(rows, a, right, count, first, to + j, pitch);
    j += vectors * L;
  }
}

// A copy of a matrix of count x columns for the right of `multiply`, each group of columns behind the other so that a group fills few
// cache lines. entry(k, j) : its numbers.
template <int L>
class Panels {
  std::vector<float> numbers;

 public:
  template <class Entry>
  Panels(int count, int columns, const Entry& entry) {
    numbers.reserve(size_t(count) * columns);
    for (int j = 0; j < columns;) {
      const int width = std::min(TOGETHER, (columns - j) / L) * L;
      for (int k = 0; k < count; k++)
        for (int column = j; column < j + width; column++) numbers.push_back(entry(k, column));
      j += width;
    }
  }
  operator Rows() const { return {numbers.data(), 0}; }
};
