// Convolutions over a strip of pixels: dense ones as sums of products, depthwise ones tap by tap, and what follows them.
#pragma once

#include <algorithm>

#include "map.h"

// What a network is read from: see program.py, which writes it.
struct Reader {
  const int32_t* integers;
  const float* numbers;

  int next() { return *integers++; }
  const float* take(size_t count) {
    numbers += count;
    return numbers - count;
  }
};

enum Activation { NONE, RELU, GELU };

// y = activation(x + bias) * scale + shift, an entry each output
class Follower {
  int activation = NONE;
  bool scaled = false;
  std::vector<float> bias, scale, shift;

 public:
  struct Output {  // the entries of one
    int activation;
    bool scaled;
    Vector bias, scale = {}, shift = {};

    Output(const Follower& outputs, int number)
        : activation(outputs.activation), scaled(outputs.scaled), bias(all(outputs.bias[number])) {
      if (scaled) scale = all(outputs.scale[number]), shift = all(outputs.shift[number]);
    }

    template <class T, int ACTIVATION>
    Vector after(Vector x) const {
      x += bias;
      if (ACTIVATION == RELU) x = larger(x, all(0));
      if (ACTIVATION == GELU) x = T::gelu(x);
      return scaled ? x * scale + shift : x;
    }

    template <class T>
    Vector apply(Vector x) const {
      return activation == RELU ? after<T, RELU>(x) : activation == GELU ? after<T, GELU>(x) : after<T, NONE>(x);
    }
  };

  void read(Reader& from, int outputs) {
    activation = from.next(), scaled = from.next();
    auto take = [&](std::vector<float>& part) {
      const float* numbers = from.take(outputs);
      part.assign(numbers, numbers + outputs);
      part.resize(rounded_up(outputs, 16));  // blocks of outputs may end behind them
    };
    take(bias);
    if (scaled) take(scale), take(shift);
  }

  // Outputs first to first + count: sums at [output - first][vector] become cells at to[vector] + number of the cell * pitch.
  template <class T>
  void write(const float* sums, size_t sums_pitch, int first, int count, int vectors, typename T::Cell* const* to, size_t pitch) const {
    if (activation == RELU) return write_all<T, RELU>(sums, sums_pitch, first, count, vectors, to, pitch);
    if (activation == GELU) return write_all<T, GELU>(sums, sums_pitch, first, count, vectors, to, pitch);
    return write_all<T, NONE>(sums, sums_pitch, first, count, vectors, to, pitch);
  }

 private:
  template <class T, int ACTIVATION>
  __attribute__((noinline)) void write_all(const float* sums, size_t sums_pitch, int first, int count, int vectors, typename T::Cell* const* to,
                                           size_t pitch) const {
    for (int i = 0; i < count; i += T::CHANNELS) {
      const float* from = sums + i * sums_pitch;
      const size_t offset = (first + i) / T::CHANNELS * pitch;
      const Output outputs[2] = {{*this, first + i}, {*this, first + i + T::CHANNELS - 1}};  // the first and the last channel of a cell
      for (int j = 0; j < vectors; j++) {
        Vector y[T::CHANNELS];
        UNROLL for (int c = 0; c < T::CHANNELS; c++) y[c] = outputs[c].template after<T, ACTIVATION>(load(from + c * sums_pitch + j * LANES));
        T::write(to[j] + offset, y);
      }
    }
  }
};

// The cells that a sum sees, from its corner: `rows` lines `pitch` apart, of each `columns` neighbours. The lines of three rows of an image
// follow each other, so that a 3 x 3 convolution of n cells has 3 n lines of 3.
struct Window {
  int rows, columns;
  size_t pitch;
};

// to[j][i * pitch] = the weights of output i times what the window at from[j] shows; i < BLOCK, j < N. Weights lie [row][column][BLOCK].
// Not inlined: what surrounds it must not take the registers that the sums live in.
template <class T, int N>
__attribute__((noinline)) void multiply(const typename T::Cell* const* from, Window window, const typename T::Cell* weights,
                                        float* const* to, size_t pitch) {
  Vector sum[BLOCK][N];
  const typename T::Cell* start[N];
  UNROLL for (int j = 0; j < N; j++) start[j] = from[j];
  UNROLL for (int i = 0; i < BLOCK; i++) UNROLL for (int j = 0; j < N; j++) sum[i][j] = all(0);
  for (int row = 0; row < window.rows; row++) {
    for (int column = 0; column < window.columns; column++, weights += BLOCK) {
      typename T::Cells x[N];
      UNROLL for (int j = 0; j < N; j++) x[j] = held(T::cells(start[j] + column));
      UNROLL for (int i = 0; i < BLOCK; i++) UNROLL for (int j = 0; j < N; j++) sum[i][j] = T::dot(sum[i][j], weights[i], x[j]);
    }
    UNROLL for (int j = 0; j < N; j++) start[j] += window.pitch;
  }
  UNROLL for (int i = 0; i < BLOCK; i++) UNROLL for (int j = 0; j < N; j++) store(to[j] + i * pitch, sum[i][j]);
}

// The weights of an output for the cell at a row and column of its window; zeros for outputs and inputs that are not there.
// weight(output, input, row of the kernel, column of it)
template <class T, class Weight>
typename T::Cell cell_of_weights(int output, int outputs, int row, int column, int inputs, Weight weight) {
  const int cells = rounded_up(inputs, T::CHANNELS) / T::CHANNELS;
  float channels[T::CHANNELS] = {};
  for (int c = 0; c < T::CHANNELS; c++) {
    int input = row % cells * T::CHANNELS + c;
    if (output < outputs && input < inputs) channels[c] = weight(output, input, row / cells, column);
  }
  return T::pack(channels);
}

// The weights of a dense convolution or of one group of it, in the order in which `multiply` reads them: `blocks` blocks of `block` outputs.
template <class T>
struct Weights {
  typedef typename T::Cell Cell;
  int block = BLOCK, blocks = 0, rows = 0, columns = 0;
  Buffer<Cell> packed;

  template <class Weight>
  void pack(int outputs, int inputs, int kernel_rows, int kernel_columns, Weight weight) {
    int cells = rounded_up(inputs, T::CHANNELS) / T::CHANNELS;
    rows = cells * kernel_rows, columns = kernel_columns, blocks = rounded_up(outputs, BLOCK) / BLOCK;
    packed.resize(size_t(blocks) * BLOCK * rows * columns);
    Cell* to = packed.start;
    for (int output = 0; output < blocks * BLOCK; output += BLOCK)
      for (int row = 0; row < rows; row++)
        for (int column = 0; column < columns; column++)
          for (int i = 0; i < BLOCK; i++) *to++ = cell_of_weights<T>(output + i, outputs, row, column, inputs, weight);
  }

  void multiply_block(int number, const Cell* const* from, int vectors, size_t window_pitch, float* const* to, size_t pitch) const {
    const Cell* weights = packed.start + size_t(number) * BLOCK * rows * columns;
    const Window window{rows, columns, window_pitch};
    for (int j = 0, n; j < vectors; j += n) {
      n = vectors - j == 4 ? 2 : std::min(vectors - j, WIDE);  // where it can be, none is left alone: it keeps the core half as busy
      auto* with = n == 1 ? multiply<T, 1> : n == 2 ? multiply<T, 2> : multiply<T, WIDE>;
      with(from + j, window, weights, to + j, pitch);
    }
  }
};

// A depthwise convolution, what follows it, and where there is one the residual: its input is added to that.
template <class T>
struct Depthwise {
  typedef typename T::Cell Cell;
  static constexpr int AT_ONCE = 4;  // vectors of pixels
  int channels = 0, kernel = 1;
  std::vector<float> taps;  // [channel][row][column]
  Follower follower;

  void read(Reader& from) {
    channels = from.next(), kernel = from.next();
    const float* weights = from.take(size_t(channels) * kernel * kernel);
    taps.assign(weights, weights + size_t(channels) * kernel * kernel);
    follower.read(from, channels);
  }

  void run(bool residual, const Cell* const* from, const Map<T>& map, int vectors, Cell* const* to, size_t pitch) const {
    const size_t row_pitch = size_t(map.cells) * map.pitch;
    for (int cell = 0; cell < channels / T::CHANNELS; cell++) {
      const Follower::Output outputs[2] = {{follower, cell * T::CHANNELS}, {follower, cell * T::CHANNELS + T::CHANNELS - 1}};
      for (int first = 0; first < vectors; first += AT_ONCE) {
        const Cell* start[AT_ONCE];
        for (int j = 0; j < AT_ONCE; j++) start[j] = from[std::min(first + j, vectors - 1)] + size_t(cell) * map.pitch;
        Vector sum[T::CHANNELS][AT_ONCE];
        sum_up(start, row_pitch, taps.data() + size_t(cell) * T::CHANNELS * kernel * kernel, sum);
        for (int j = 0; j < AT_ONCE && first + j < vectors; j++) {
          Vector y[T::CHANNELS];
          UNROLL for (int c = 0; c < T::CHANNELS; c++) {
            y[c] = outputs[c].template apply<T>(sum[c][j]);
            if (residual) y[c] += T::channel(T::cells(start[j] + kernel / 2 * (row_pitch + 1)), c);
          }
          T::write(to[first + j] + cell * pitch, y);
        }
      }
    }
  }

 private:
  __attribute__((noinline)) void sum_up(const Cell* const* from, size_t row_pitch, const float* taps_of_cell,
                                        Vector (&result)[T::CHANNELS][AT_ONCE]) const {
    Vector sum[T::CHANNELS][AT_ONCE];
    UNROLL for (int c = 0; c < T::CHANNELS; c++) UNROLL for (int j = 0; j < AT_ONCE; j++) sum[c][j] = all(0);
    for (int row = 0; row < kernel; row++)
      for (int column = 0; column < kernel; column++) {
        size_t offset = row * row_pitch + column;
        const float* tap = taps_of_cell + row * kernel + column;
        UNROLL for (int j = 0; j < AT_ONCE; j++) {
          auto cells = T::cells(from[j] + offset);
          UNROLL for (int c = 0; c < T::CHANNELS; c++) sum[c][j] += tap[c * kernel * kernel] * T::channel(cells, c);
        }
      }
    UNROLL for (int c = 0; c < T::CHANNELS; c++) UNROLL for (int j = 0; j < AT_ONCE; j++) result[c][j] = sum[c][j];
  }
};
