// The gradient of the weights of a 3 x 3 convolution with padding 1, in groups or not: PyTorch's takes two to three times what as many products
// take forward. Some rows of the input are copied side by side, with a pixel of zeros at the ends of each: the three taps along a row are then one
// row of a matrix, which the next pixel's begins a pixel further, and with the gradient's rows, which end with zeros, it is one product.
//
// Maps are pixels x channels; the gradient of the weights lies as they do in channels_last, outputs x 3 x 3 x inputs of a group.
#pragma once

#include "products.h"
#include "slices.h"

struct Convolution {
  int images, height, width, inputs, outputs, groups;
};

// L divides the inputs and the outputs of a group.
template <int L>
class ConvolutionPass {
  static constexpr int SLICES = 16, PIXELS = 64;  // in a product, so that some columns of the input stay in the nearest cache

  const Convolution map;
  const int threads, in, out;    // channels of a group
  const int together, blocks;    // rows, and how many times these fit into an image
  const long padded, weights;    // pixels of a copied row; numbers of the weights

 public:
  ConvolutionPass(const Convolution& map, int threads)
      : map(map), threads(threads), in(map.inputs / map.groups), out(map.outputs / map.groups),
        together(std::min(map.height, std::max(1, PIXELS / map.width))), blocks((map.height + together - 1) / together),
        padded(map.width + 2), weights(9L * map.outputs * in) {}

  void gradient(const float* x, const float* given, float* of_weight, float* of_bias) const {
    std::vector<float> parts(SLICES * weights);
    Sums biases(SLICES, map.outputs);
    each_slice(SLICES, long(map.images) * blocks, 1, threads, [&](int slice) {
      return [&, slice, right = std::vector<float>((together + 2) * padded * in),
              left = std::vector<float>(together * padded * out)](long number, int) mutable {
        const int first = number % blocks * together, rows = std::min(together, map.height - first);
        const long image = number / blocks * map.height;
        for (int group = 0; group < map.groups; group++) {
          for (int y = -1; y <= rows; y++) {
            float* to = &right[((y + 1) * padded + 1) * in];
            if (first + y < 0 || first + y >= map.height) std::fill_n(to, map.width * in, 0.f);
            else copy(x + (image + first + y) * map.width * map.inputs + group * in, map.inputs, in, to);
          }
          for (int y = 0; y < rows; y++)
            copy(given + (image + first + y) * map.width * map.outputs + group * out, map.outputs, out, &left[y * padded * out]);
          float* part = &parts[slice * weights + group * out * 9L * in];
          for (int tap = 0; tap < 3; tap++) {
            float* to = part + tap * 3L * in;
            multiply<L>(out, 3 * in, {left.data(), 1, out}, {&right[tap * padded * in], in}, rows * padded - 2, {to, 9L * in}, to, 9L * in);
          }
          for (int c = 0; c < out; c += L) {
            Vector<L> sum{};
            for (long pixel = 0; pixel < rows * padded; pixel++) sum += load<L>(&left[pixel * out + c]);
            biases.template add<L>(slice, group * out + c, sum);
          }
        }
      };
    });
    for (long k = 0; k < weights; k++) {
      double sum = 0;
      for (int slice = 0; slice < SLICES; slice++) sum += parts[slice * weights + k];
      of_weight[k] = float(sum);
    }
    for (int c = 0; c < map.outputs; c++) of_bias[c] = float(biases.total(c));
  }

 private:
  // A row's pixels, `step` numbers apart, side by side.
  void copy(const float* from, int step, int channels, float* to) const {
    for (int pixel = 0; pixel < map.width; pixel++)
      for (int c = 0; c < channels; c += L) store<L>(to + long(pixel) * channels + c, load<L>(from + long(pixel) * step + c));
  }
};
