// 3 x 3 convolutions in float32 with half of the multiplications: Winograd's minimal filtering F(4, 3), from top to bottom (Lavin and Gray, Fast
// algorithms for convolutional neural networks, CVPR 2016, section 4). Six rows of a map become six others, each of these goes through a 1 x 3
// convolution of its own, and what comes out becomes four rows. In float32 the logits of CMUNeXt-S are as near to float64's as with direct sums (3e-6 of
// 10, root mean square); in bfloat16 the six rows would be rounded once more, so that its maps stay with direct sums.
#pragma once

#include "layers.h"

// One group of a 3 x 3 convolution.
class Winograd {
  static constexpr int LIFTED = 6;

  Weights<Float32> weights[LIFTED];

 public:
  static constexpr int ROWS = 4;  // that come out at a time

  template <class Weight>
  void pack(int outputs, int inputs, Weight weight) {
    static constexpr double G[LIFTED][3] = {{1. / 4, 0, 0},           {-1. / 6, -1. / 6, -1. / 6}, {-1. / 6, 1. / 6, -1. / 6},
                                            {1. / 24, 1. / 12, 1. / 6}, {1. / 24, -1. / 12, 1. / 6}, {0, 0, 1}};
    for (int i = 0; i < LIFTED; i++)
      weights[i].pack(outputs, inputs, 1, 3, [&](int output, int input, int, int column) {
        double sum = 0;
        for (int row = 0; row < 3; row++) sum += G[i][row] * weight(output, input, row, column);
        return float(sum);
      });
  }

  // Numbers that a run needs memory for.
  static size_t scratch_size(int channels, int width) { return size_t(LIFTED) * (channels + BLOCK) * pitch_of(width); }

  // Rows first to first + ROWS, those of them that are in the map: the outputs become cells at to[vector] + number of the cell * pitch, as
  // `follower` has them from its output `offset` on. `sums` is memory for BLOCK lines of ROWS rows and a margin.
  void run(const Map<Float32>& source, int first, const Follower& follower, int offset, float* const* to, size_t pitch, float* sums, float* scratch) const {
    const int across = rounded_up(source.width, LANES) / LANES, vectors = across * std::min(ROWS, source.height - first);
    const size_t line_pitch = pitch_of(source.width), sums_pitch = ROWS * across * LANES + MARGIN;
    float* products = scratch + size_t(LIFTED) * source.cells * line_pitch;
    lift(source, first, scratch);
    std::vector<const float*> from;  // of each lifted row in turn
    std::vector<float*> into;
    for (int i = 0; i < LIFTED; i++)
      for (int j = 0; j < across; j++) {
        from.push_back(scratch + size_t(i) * source.cells * line_pitch + (j + 1) * LANES - 1);
        into.push_back(products + size_t(i) * BLOCK * line_pitch + j * LANES);
      }
    for (int number = 0; number < weights[0].blocks; number++) {
      for (int i = 0; i < LIFTED; i++)
        weights[i].multiply_block(number, &from[i * across], across, line_pitch, &into[i * across], line_pitch);
      for (int output = 0; output < BLOCK; output++) lower(products + output * line_pitch, BLOCK * line_pitch, across, sums + output * sums_pitch);
      follower.write<Float32>(sums, sums_pitch, offset + number * BLOCK, BLOCK, vectors, to, pitch);
    }
  }

 private:
  static size_t pitch_of(int width) { return rounded_up(width, LANES) + 2 * LANES; }  // zeros at both sides

  // Six rows of the map, from the one above `first`, as six others: [row][channel][x].
  static void lift(const Map<Float32>& source, int first, float* lifted) {
    const size_t pitch = pitch_of(source.width), row_pitch = source.cells * pitch;
    for (int channel = 0; channel < source.cells; channel++) {
      const float* rows[LIFTED];
      for (int i = 0; i < LIFTED; i++) rows[i] = source.line(std::min(first - 1 + i, source.height), channel);  // the row behind the map is zeros
      float* to = lifted + channel * pitch;
      for (int i = 0; i < LIFTED; i++) store(to + i * row_pitch, all(0)), store(to + i * row_pitch + pitch - LANES, all(0));
      to += LANES;
      for (int x = 0; x < source.width; x += LANES) {
        Vector d[LIFTED];
        UNROLL for (int i = 0; i < LIFTED; i++) d[i] = load(rows[i] + x);
        const Vector far = d[4] - 4 * d[2], near = d[3] - 4 * d[1], outer = d[4] - d[2], inner = 2 * (d[3] - d[1]);
        store(to + x, far + 4 * d[0] - d[2]);
        store(to + row_pitch + x, far + near);
        store(to + 2 * row_pitch + x, far - near);
        store(to + 3 * row_pitch + x, outer + inner);
        store(to + 4 * row_pitch + x, outer - inner);
        store(to + 5 * row_pitch + x, d[5] - d[3] - 4 * (d[3] - d[1]));
      }
    }
  }

  // One output's six products, `pitch` apart, as the sums of its four rows one behind the other.
  static void lower(const float* products, size_t pitch, int across, float* sums) {
    for (int x = 0; x < across * LANES; x += LANES) {
      Vector m[LIFTED];
      UNROLL for (int i = 0; i < LIFTED; i++) m[i] = load(products + i * pitch + x);
      const Vector plus = m[1] + m[2], minus = m[1] - m[2], wide_plus = m[3] + m[4], wide_minus = m[3] - m[4];
      store(sums + x, m[0] + plus + wide_plus);
      store(sums + across * LANES + x, minus + 2 * wide_minus);
      store(sums + 2 * across * LANES + x, plus + 4 * wide_plus);
      store(sums + 3 * across * LANES + x, minus + 8 * wide_minus + m[5]);
    }
  }
};
