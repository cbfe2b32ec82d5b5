// The gradient of the weights of a depthwise convolution with a large odd kernel, padded so that the map keeps its size: PyTorch's takes more than
// ten times what as many products take forward. The map's rows that a row of the gradient meets lie in a ring, with zeros at their ends, and a row of
// taps has its sums in registers, so that a pixel that is read there is used up to four times.
//
// Maps are pixels x channels; the gradient of the weights is channels x taps.
#pragma once

#include "convolution.h"

// L divides the channels.
template <class Data, int L, int KERNEL>
class DepthwisePass {
  static constexpr int PIXELS = 4;           // of the gradient, held in registers
  static constexpr int AROUND = KERNEL / 2;  // pixels that the kernel reaches beyond its middle
  typedef Vector<L> V;

  const Convolution map;
  const int threads;
  const long padded;  // numbers of a row with zeros at its ends

 public:
  DepthwisePass(const Convolution& map, int threads)
      : map(map), threads(threads), padded((map.width + PIXELS - 1) / PIXELS * PIXELS * L + 2L * AROUND * L) {}

  void gradient(const Data* x, const Data* given, float* of_weight, float* of_bias) const {
    const int channels = map.inputs;
    Sums weights(map.images, channels * KERNEL * KERNEL), biases(map.images, channels);
    each_slice(map.images, map.images, 1, threads, [&](int image) {
      return [&, image, rows = std::vector<float>(KERNEL * padded), row = std::vector<float>(padded)](long, int) mutable {
        const long first = long(image) * map.height * map.width * channels;
        for (int c = 0; c < channels; c += L) {
          V sums[KERNEL][KERNEL]{}, bias{};
          auto take = [&](int y) {  // a row of the map into the ring, or zeros
            float* to = &rows[(y + KERNEL) % KERNEL * padded];
            std::fill_n(to, padded, 0.f);
            if (y >= 0 && y < map.height) copy(x + first + long(y) * map.width * channels + c, to + AROUND * L);
          };
          for (int y = -AROUND; y < AROUND; y++) take(y);
          for (int y = 0; y < map.height; y++) {
            take(y + AROUND);
            copy(given + first + long(y) * map.width * channels + c, row.data());
            for (int pixel = 0; pixel < map.width; pixel++) bias += load<L>(&row[pixel * L]);
            for (int i = 0; i < KERNEL; i++) add(row.data(), &rows[(y - AROUND + i + KERNEL) % KERNEL * padded], sums[i]);
          }
          for (int i = 0; i < KERNEL; i++)
            for (int j = 0; j < KERNEL; j++) weights.template add<L>(image, (i * KERNEL + j) * channels + c, sums[i][j]);
          biases.template add<L>(image, c, bias);
        }
      };
    });
    for (int c = 0; c < channels; c++) {
      of_bias[c] = float(biases.total(c));
      for (int tap = 0; tap < KERNEL * KERNEL; tap++) of_weight[c * KERNEL * KERNEL + tap] = float(weights.total(tap * channels + c));
    }
  }

 private:
  // L channels of a row's pixels, side by side; the ends keep their zeros.
  void copy(const Data* from, float* to) const {
    for (int pixel = 0; pixel < map.width; pixel++) store<L>(to + long(pixel) * L, load<L>(from + long(pixel) * map.inputs));
  }

  // To the sums of a row of taps: the gradient's row times the map's, each tap a pixel further. Beyond its end the gradient's row has zeros.
  void add(const float* gradient, const float* from, V (&sums)[KERNEL]) const {
    V part[KERNEL];
    UNROLL for (int j = 0; j < KERNEL; j++) part[j] = sums[j];
    for (long at = 0; at < long(map.width) * L; at += PIXELS * L) {
      V here[PIXELS];
      UNROLL for (int p = 0; p < PIXELS; p++) here[p] = load<L>(gradient + at + p * L);
      UNROLL for (int step = 0; step < KERNEL + PIXELS - 1; step++) {
        const V pixel = load<L>(from + at + step * L);
        UNROLL for (int p = 0; p < PIXELS; p++)
          if (step - p >= 0 && step - p < KERNEL) part[step - p] += here[p] * pixel;
      }
    }
    UNROLL for (int j = 0; j < KERNEL; j++) sums[j] = part[j];
  }
};
