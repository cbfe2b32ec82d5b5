// The middle of an inverted bottleneck in training: 1 x 1 convolution to more channels, GELU, BatchNorm, 1 x 1 convolution.
//
// Maps are pixels x channels. Those of the many channels between the two convolutions never go to memory: each pass computes a piece of them
// again, in the nearest cache.
#pragma once

#include "norms.h"
#include "products.h"

struct Bottleneck {
  int in, hidden, out;                  // channels
  const float *expand, *expand_bias;    // hidden x in, hidden
  const float *project, *project_bias;  // out x hidden, out
  Norm norm;
};

// Gradients of the above.
struct BottleneckGradients {
  float *expand, *expand_bias, *project, *project_bias, *weight, *bias;
};

// L divides all channels.
template <int L>
class BottleneckPass {
  typedef Vector<L> V;

  const Bottleneck& of;
  const long pixels;
  const int threads, in, hidden, out;
  const int slices;
  const long piece;
  const Panels<L> expand;
  const std::vector<float> zeros;

 public:
  BottleneckPass(const Bottleneck& of, long pixels, int threads)
      : of(of), pixels(pixels), threads(threads), in(of.in), hidden(of.hidden), out(of.out),
        slices(long(in + out) * hidden <= 1 << 14 ? 64 : 16), piece(std::min(192, std::max(24, 6144 / hidden / 24 * 24))),
        expand(in, hidden, [&](int k, int n) { return of.expand[long(n) * of.in + k]; }), zeros(in) {}

  void forward(const float* x, float* to) const {
    std::vector<float> shift(hidden);
    expanded(x, 1, shift.data());
    for (int n = 0; n < hidden; n += L) store<L>(&shift[n], gelu<float, L>(load<L>(&shift[n])));

    Sums sums(slices, 2 * hidden);
    each_slice(slices, pixels, piece, threads, [&](int slice) {
      return [&, slice, z = std::vector<float>(piece * hidden)](long first, int count) mutable {
        expanded(x + first * in, count, z.data());
        for (int n = 0; n < hidden; n += L) {
          V one{}, two{};
          const V s = load<L>(&shift[n]);
          for (int p = 0; p < count; p++) {
            const V y = gelu<float, L>(load<L>(&z[p * hidden + n])) - s;
            one += y, two += y * y;
          }
          sums.template add<L>(slice, n, one), sums.template add<L>(slice, hidden + n, two);
        }
      };
    });
    for (int n = 0; n < hidden; n++) of.norm.take(n, shift[n], sums.total(n) / pixels, sums.total(hidden + n) / pixels, pixels);

    const Panels<L> project(hidden, out, [&](int n, int c) { return of.project[long(c) * hidden + n] * of.norm.weight[n] * of.norm.scale[n]; });
    std::vector<float> bias(out);
    for (int c = 0; c < out; c++) {
      double sum = of.project_bias[c];
      for (int n = 0; n < hidden; n++) sum += double(of.project[long(c) * hidden + n]) * of.norm.bias[n];
      bias[c] = float(sum);
    }
    each_slice(slices, pixels, piece, threads, [&](int) {
      return [&, z = std::vector<float>(piece * hidden)](long first, int count) mutable {
        expanded(x + first * in, count, z.data());
        centred(z.data(), count);
        multiply<L>(count, out, {z.data(), hidden, 1}, project, hidden, {bias.data(), 0}, to + first * out, out);
      };
    });
  }

  // From the gradient `given` of the output to all others.
  void backward(const float* x, const float* given, float* of_x, const BottleneckGradients& gradients) const {
    // What the output's gradient and the centred activations have in common, out x hidden: all other sums of the norm follow from it.
    Sums of_out(slices, out);
    const std::vector<double> common = added(out * hidden, [&](int slice, float* products) {
      return [&, slice, products, y = std::vector<float>(piece * hidden)](long first, int count) mutable {
        const float *from = x + first * in, *gradient = given + first * out;
        expanded(from, count, y.data());
        centred(y.data(), count);
        multiply<L>(out, hidden, {gradient, 1, out}, {y.data(), hidden}, count, {products, hidden}, products, hidden);
        for (int c = 0; c < out; c += L) {
          V sum{};
          for (int p = 0; p < count; p++) sum += load<L>(gradient + p * out + c);
          of_out.template add<L>(slice, c, sum);
        }
      };
    });
    std::vector<double> sums(out);
    for (int c = 0; c < out; c++) sums[c] = of_out.total(c), gradients.project_bias[c] = float(sums[c]);
    std::vector<float> scale(hidden), slope(hidden), constant(hidden);
    for (int n = 0; n < hidden; n++) {
      const double weight = of.norm.weight[n], s = of.norm.scale[n];
      double sum = 0, with_y = 0;
      for (int c = 0; c < out; c++) {
        const long at = long(c) * hidden + n;
        sum += of.project[at] * sums[c], with_y += of.project[at] * common[at];
        gradients.project[at] = float(weight * s * common[at] + of.norm.bias[n] * sums[c]);
      }
      gradients.bias[n] = float(sum), gradients.weight[n] = float(s * with_y);
      const Norm::Line line = of.norm.gradient(n, sum, with_y, pixels);
      scale[n] = float(weight * s), slope[n] = line.slope, constant[n] = line.constant;
    }

    const Panels<L> back(out, hidden, [&](int c, int n) { return of.project[long(c) * hidden + n] * scale[n]; });
    const Panels<L> back_again(hidden, in, [&](int n, int k) { return of.expand[long(n) * in + k]; });
    Sums of_hidden(slices, hidden);
    const std::vector<double> of_expand = added(hidden * in, [&](int slice, float* products) {
      return [&, slice, products, z = std::vector<float>(piece * hidden), g = std::vector<float>(piece * hidden)](long first, int count) mutable {
        const float *from = x + first * in, *gradient = given + first * out;
        expanded(from, count, z.data());
        multiply<L>(count, hidden, {gradient, out, 1}, back, out, {constant.data(), 0}, g.data(), hidden);
        for (int n = 0; n < hidden; n += L) {
          const V s = load<L>(&slope[n]);
          V sum{};
          for (int p = 0; p < count; p++) {
            const V here = load<L>(&z[p * hidden + n]);
            const V of_z = (load<L>(&g[p * hidden + n]) + gelu<float, L>(here) * s) * gelu_slope<float, L>(here);
            store<L>(&g[p * hidden + n], of_z), sum += of_z;
          }
          of_hidden.template add<L>(slice, n, sum);
        }
        multiply<L>(count, in, {g.data(), hidden, 1}, back_again, hidden, {zeros.data(), 0}, of_x + first * in, in);
        multiply<L>(hidden, in, {g.data(), 1, hidden}, {from, in}, count, {products, in}, products, in);
      };
    });
    for (int n = 0; n < hidden; n++) gradients.expand_bias[n] = float(of_hidden.total(n));
    for (int at = 0; at < hidden * in; at++) gradients.expand[at] = float(of_expand[at]);
  }

 private:
  // The first convolution of some pixels, count x hidden.
  void expanded(const float* x, int count, float* to) const {
    multiply<L>(count, hidden, {x, in, 1}, expand, in, {of.expand_bias, 0}, to, hidden);
  }

  // From there to the activation less its mean, in place.
  void centred(float* z, int count) const {
    for (int n = 0; n < hidden; n += L) {
      const V mean = load<L>(of.norm.mean + n);
      for (int p = 0; p < count; p++) store<L>(z + p * hidden + n, gelu<float, L>(load<L>(z + p * hidden + n)) - mean);
    }
  }

  // The sum over all slices of `width` numbers that each slice adds up for itself: begin(slice, its numbers), else as in `each_slice`.
  template <class Begin>
  std::vector<double> added(int width, const Begin& begin) const {
    std::vector<float> parts(size_t(slices) * width);
    each_slice(slices, pixels, piece, threads, [&](int slice) { return begin(slice, parts.data() + size_t(slice) * width); });
    std::vector<double> sum(width);
    for (size_t at = 0; at < parts.size(); at++) sum[at % width] += parts[at];
    return sum;
  }
};
