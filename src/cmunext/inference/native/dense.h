// Dense convolutions, in groups, and what follows them.
#pragma once

#include "winograd.h"

template <class T>
struct Dense {
  typedef typename T::Cell Cell;
  static constexpr bool LIFTS = std::is_same<T, Float32>::value;
  int outputs = 0, outputs_of_group = 0, kernel = 1;
  std::vector<Weights<T>> groups;
  std::vector<Winograd> lifted;  // the groups of a 3 x 3 kernel in float32, which are not in `groups` then
  Follower follower;

  void read(Reader& from) {
    int inputs = from.next();
    outputs = from.next();
    const int count = from.next();
    kernel = from.next();
    const int in = inputs / count;
    outputs_of_group = outputs / count;
    const float* weights = from.take(size_t(outputs) * in * kernel * kernel);
    const bool lifts = LIFTS && kernel == 3;
    (lifts ? lifted.resize(count) : groups.resize(count));
    for (int group = 0; group < count; group++) {
      auto weight = [&](int output, int input, int row, int column) {
        return weights[((size_t(group * outputs_of_group + output) * in + input) * kernel + row) * kernel + column];
      };
      if (lifts)
        lifted[group].pack(outputs_of_group, in, weight);
      else
        groups[group].pack(outputs_of_group, in, kernel, kernel, weight);
    }
    follower.read(from, outputs);
  }

  // One group: reads the windows at from[j], writes the cells at to[j] + number * pitch. `sums` is memory for `sums_size(vectors)` numbers.
  void run(int group, const Cell* const* from, size_t window_pitch, int vectors, Cell* const* to, size_t pitch, float* sums) const {
    struct Piece {
      int count, start, output;
      float* sums;
    };
    const Weights<T>& weights = groups[group];
    const int most = piece_size(vectors);
    const size_t sums_pitch = most * LANES + MARGIN;
    std::vector<float*> sums_of(most);
    auto write = [&](const Piece& piece) {
      follower.write<T>(piece.sums, sums_pitch, piece.output, weights.block, piece.count, to + piece.start, pitch);
    };
    Piece before{0, 0, 0, sums + 16 * sums_pitch};
    for (int number = 0; number < weights.blocks; number++)
      for (int start = 0; start < vectors; start += most) {
        Piece piece{std::min(most, vectors - start), start, outputs_of_group * group + number * weights.block, sums};
        for (int j = 0; j < piece.count; j++) sums_of[j] = sums + j * LANES;
        weights.multiply_block(number, from + start, piece.count, window_pitch, sums_of.data(), sums_pitch);
        if (T::AHEAD) std::swap(piece, before);
        write(piece);
        sums = piece.sums;
      }
    if (T::AHEAD) write(before);
  }

  // How many numbers `sums` needs for that many vectors.
  static size_t sums_size(int vectors) { return (T::AHEAD ? 2 : 1) * 16 * (size_t(piece_size(vectors)) * LANES + MARGIN); }

  // The same of a lifted layer, for the rows of `source` from `first` on.
  void run_lifted(int group, const Map<T>& source, int first, Cell* const* to, size_t pitch, float* sums, float* scratch) const {
    if constexpr (LIFTS) lifted[group].run(source, first, follower, outputs_of_group * group, to, pitch, sums, scratch);
  }

 private:
  // Vectors of a piece: all, or a few where the next piece's sums are taken before one is written.
  static int piece_size(int vectors) { return T::AHEAD ? std::min(vectors, T::AHEAD) : vectors; }
};
