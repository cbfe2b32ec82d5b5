// BatchNorm in training with GELU before it or ReLU after it, forward and backward, in as few passes over memory as its statistics allow.
//
// A feature map is pixels x channels. Of what lies between activation and norm nothing is kept: it is computed again.
#pragma once

#include <cmath>

#include "gelu.h"
#include "slices.h"

// Weights and statistics of a BatchNorm, an entry a channel.
struct Norm {
  const float *weight, *bias;
  float *mean, *scale;                     // of this batch: mean, and 1 / standard deviation
  float *running_mean, *running_variance;  // moved towards this batch's when going forward
  double epsilon, momentum;

  // From the mean of (y - shift) and of its square.
  void take(int channel, double shift, double first, double second, long pixels) const {
    const double middle = shift + first, variance = std::max(0., second - first * first);
    mean[channel] = float(middle);
    scale[channel] = float(1 / std::sqrt(variance + epsilon));
    running_mean[channel] += float(momentum * (middle - running_mean[channel]));
    running_variance[channel] += float(momentum * (variance * pixels / (pixels - 1) - running_variance[channel]));
  }

  // The gradient of y is weight * scale * (the output's gradient) + slope * y + constant.
  struct Line {
    float slope, constant;
  };
  // From the sums of the output's gradient, and of it times (y - mean).
  Line gradient(int channel, double sum, double with_y, long pixels) const {
    const double s = scale[channel];
    const float slope = float(-weight[channel] * s * s * s * with_y / pixels);
    return {slope, float(-weight[channel] * s * sum / pixels - double(slope) * mean[channel])};
  }
};

template <class Data>
struct GeluBefore {
  template <int L>
  static Vector<L> before(Vector<L> x) { return gelu<Data, L>(x); }
  template <int L>
  static Vector<L> slope(Vector<L> x) { return gelu_slope<Data, L>(x); }
  template <int L>
  static Vector<L> after(Vector<L> y) { return y; }
  template <int L>
  static Vector<L> passed(Vector<L> gradient, Vector<L>) { return gradient; }
};

struct ReluAfter {
  template <int L>
  static Vector<L> before(Vector<L> x) { return x; }
  template <int L>
  static Vector<L> slope(Vector<L>) { return all<L>(1); }
  template <int L>
  static Vector<L> after(Vector<L> y) { return positive<L>(y); }
  template <int L>
  static Vector<L> passed(Vector<L> gradient, Vector<L> y) { return y > 0 ? gradient : all<L>(0); }
};

// A map as rows that vectors fill: of one pixel, or of several where the channels are few or odd. Vectors must fill the last row too.
template <class Activation, class Data>
class NormPass {
  static constexpr int L = WIDEST, SLICES = 64, PIECE = 2048;  // numbers of a piece: they stay in the nearest cache
  typedef Vector<L> V;

  const long pixels;
  const int channels, width;
  const long rows, piece;
  const int threads;

 public:
  static int width_of(int channels) {
    int width = channels;
    while (width % L) width += channels;
    return width;
  }

  NormPass(long pixels, int channels, int threads)
      : pixels(pixels), channels(channels), width(width_of(channels)), rows(pixels * channels / width), piece(std::max(1, PIECE / width)),
        threads(threads) {}

  void forward(const Data* x, const Norm& norm, Data* out) const {
    std::vector<float> shift(width);  // the first pixel: what is near the mean loses no digits in sums of squares
    for (int column = 0; column < width; column += L) store<L>(&shift[column], value(x + column));
    for (int column = channels; column < width; column++) shift[column] = shift[column - channels];
    const Sums sums = summed([&](long at, int column) {
      const V y = value(x + at) - load<L>(&shift[column]);
      return Pair{y, y * y};
    });
    for (int channel = 0; channel < channels; channel++) {
      norm.take(channel, shift[channel], total(sums, 0, channel) / pixels, total(sums, 1, channel) / pixels, pixels);
    }
    apply(x, norm, out);
  }

  // By statistics that are known.
  void apply(const Data* x, const Norm& norm, Data* out) const {
    std::vector<float> scale(width), offset(width);
    affine(norm, scale, offset);
    each_number([&](long at, int column) {
      store<L>(out + at, Activation::template after<L>(value(x + at) * load<L>(&scale[column]) + load<L>(&offset[column])));
    });
  }

  // From the gradient `given` of the output to those of input, weight and bias.
  void backward(const Data* x, const Data* given, const Norm& norm, Data* of_x, float* of_weight, float* of_bias) const {
    std::vector<float> scale(width), offset(width), middle(width), slope(width), constant(width);
    affine(norm, scale, offset);
    for (int column = 0; column < width; column++) middle[column] = norm.mean[column % channels];
    auto gradient = [&](long at, int column, V y) {
      return Activation::template passed<L>(load<L>(given + at), y * load<L>(&scale[column]) + load<L>(&offset[column]));
    };
    const Sums sums = summed([&](long at, int column) {
      const V y = value(x + at), passed = gradient(at, column, y);
      return Pair{passed, passed * (y - load<L>(&middle[column]))};
    });
    for (int channel = 0; channel < channels; channel++) {
      const double sum = total(sums, 0, channel), with_y = total(sums, 1, channel), s = norm.scale[channel];
      of_bias[channel] = float(sum), of_weight[channel] = float(s * with_y);
      const Norm::Line line = norm.gradient(channel, sum, with_y, pixels);
      for (int column = channel; column < width; column += channels) slope[column] = line.slope, constant[column] = line.constant;
    }
    each_number([&](long at, int column) {
      const V from = load<L>(x + at), y = Activation::template before<L>(from);
      const V of_y = gradient(at, column, y) * load<L>(&scale[column]) + (y * load<L>(&slope[column]) + load<L>(&constant[column]));
      store<L>(of_x + at, of_y * Activation::template slope<L>(from));
    });
  }

 private:
  struct Pair {
    V first, second;
  };

  static V value(const Data* from) { return Activation::template before<L>(load<L>(from)); }

  void affine(const Norm& norm, std::vector<float>& scale, std::vector<float>& offset) const {
    for (int column = 0; column < width; column++) {
      const int channel = column % channels;
      scale[column] = norm.weight[channel] * norm.scale[channel];
      offset[column] = norm.bias[channel] - scale[column] * norm.mean[channel];
    }
  }

  // The sums a column of both values of function(place, column), the second behind the first.
  template <class Function>
  Sums summed(const Function& function) const {
    Sums sums(SLICES, 2 * width);
    each_slice(SLICES, rows, piece, threads, [&](int slice) {
      return [&, slice](long first, int count) {
        for (int column = 0; column < width; column += L) {
          Pair pair{};
          for (long at = first * width + column; at < (first + count) * width; at += width) {
            const Pair more = function(at, column);
            pair.first += more.first, pair.second += more.second;
          }
          sums.template add<L>(slice, column, pair.first), sums.template add<L>(slice, width + column, pair.second);
        }
      };
    });
    return sums;
  }

  double total(const Sums& sums, int which, int channel) const {
    double sum = 0;
    for (int column = channel; column < width; column += channels) sum += sums.total(which * width + column);
    return sum;
  }

  template <class Function>
  void each_number(const Function& function) const {
    each_slice(SLICES, rows, piece, threads, [&](int) {
      return [&](long first, int count) {
        for (long row = first; row < first + count; row++)
          for (int column = 0; column < width; column += L) function(row * width + column, column);
      };
    });
  }
};
