// What is left of a 3 x 3 convolution behind bilinear upsampling by two when its nine products are taken before the upsampling, at a quarter of
// the pixels: to upsample, shift and sum them. The same function, since both are linear and neither mixes what the other does.
//
// Maps are pixels x channels; the products of a pixel lie tap by tap, nine times the channels of the output.
#pragma once

#include <array>

#include "slices.h"

// Where the terms of a sum lie, and how much of each is taken; sums of fewer terms end with nothing of the first number.
template <int N>
struct Shares {
  int count = 0, at[N] = {};
  float share[N] = {};

  void add(int place, float part) { at[count] = place, share[count++] = part; }
};

// Along one axis, of n pixels before and 2 n behind the upsampling: how much each tap of the kernel behind sees of which before.
struct Axis {
  std::vector<Shares<6>> behind;                // for a pixel behind, by 3 * pixel before + tap
  std::vector<std::array<Shares<4>, 3>> before;  // for a pixel before and a tap, by pixel behind

  explicit Axis(int n) : behind(2 * n), before(n) {
    for (int pixel = 0; pixel < 2 * n; pixel++) {
      for (int tap = 0; tap < 3; tap++) {
        const int seen = pixel + tap - 1;
        if (seen < 0 || seen >= 2 * n) continue;  // the zeros around the map
        const int near = seen / 2, far = std::min(std::max(near + (seen % 2 ? 1 : -1), 0), n - 1);
        add(pixel, tap, near, far == near ? 1.f : 0.75f);
        if (far != near) add(pixel, tap, far, 0.25f);
      }
    }
  }

 private:
  void add(int pixel, int tap, int seen, float share) {
    behind[pixel].add(3 * seen + tap, share);
    before[seen][tap].add(pixel, share);
  }
};

// L divides the channels.
template <class Data, int L>
class UpsamplingPass {
  typedef Vector<L> V;
  static constexpr int SLICES = 64, KEPT = 8;  // rows that are kept: more than one row of products needs

  const int images, height, width, channels, threads;
  const long row;  // numbers of a row with three taps
  const Axis rows, columns;

 public:
  UpsamplingPass(int images, int height, int width, int channels, int threads)
      : images(images), height(height), width(width), channels(channels), threads(threads), row(3L * width * channels), rows(height),
        columns(width) {}

  void forward(const Data* products, const float* bias, Data* out) const {
    each_slice(SLICES, long(images) * 2 * height, 1, threads, [&](int) {
      return [&, sums = std::vector<float>(row)](long number, int) mutable {
        const Shares<6>& lines = rows.behind[number % (2 * height)];
        const Data *image = products + number / (2 * height) * height * 3 * row, *line[6];
        for (int k = 0; k < 6; k++) line[k] = image + lines.at[k] / 3 * 3 * row + lines.at[k] % 3 * 3 * channels;
        for (int x = 0; x < width; x++)
          for (int c = 0; c < 3 * channels; c += L) {
            V sum{};
            UNROLL for (int k = 0; k < 6; k++) sum += load<L>(line[k] + x * 9L * channels + c) * lines.share[k];
            store<L>(&sums[x * 3L * channels + c], sum);
          }
        for (int x = 0; x < 2 * width; x++) {
          const Shares<6>& terms = columns.behind[x];
          for (int c = 0; c < channels; c += L) {
            V sum = load<L>(bias + c);
            UNROLL for (int k = 0; k < 6; k++) sum += load<L>(&sums[long(terms.at[k]) * channels + c]) * terms.share[k];
            store<L>(out + (number * 2 * width + x) * channels + c, sum);
          }
        }
      };
    });
  }

  // From the gradient `given` of the output to those of products and bias.
  void backward(const Data* given, Data* of_products, float* of_bias) const {
    Sums sums(SLICES, channels);
    each_slice(SLICES, long(images) * height, 1, threads, [&](int slice) {
      return [&, slice, kept = std::vector<float>(KEPT * row), which = std::vector<long>(KEPT, -1)](long number, int) mutable {
        auto line = [&](int pixel) -> const float* {  // row `pixel` of this image, gathered once
          const long behind = number / height * 2 * height + pixel, place = behind % KEPT;
          if (which[place] != behind) gather(given + behind * 2 * width * channels, &kept[place * row]), which[place] = behind;
          return &kept[place * row];
        };
        for (int tap = 0; tap < 3; tap++) {
          const Shares<4>& terms = rows.before[number % height][tap];
          const float* lines[4];
          for (int k = 0; k < 4; k++) lines[k] = line(terms.at[k < terms.count ? k : 0]);
          Data* to = of_products + number * 3 * row + tap * 3 * channels;
          for (int x = 0; x < width; x++)
            for (int c = 0; c < 3 * channels; c += L) {
              V sum{};
              UNROLL for (int k = 0; k < 4; k++) sum += load<L>(lines[k] + x * 3L * channels + c) * terms.share[k];
              store<L>(to + x * 9L * channels + c, sum);
            }
        }
        for (int c = 0; c < channels; c += L) {
          V sum{};
          for (int x = 0; x < 4 * width; x++) sum += load<L>(given + (number * 4 * width + x) * channels + c);
          sums.template add<L>(slice, c, sum);
        }
      };
    });
    for (int c = 0; c < channels; c++) of_bias[c] = float(sums.total(c));
  }

 private:
  // What each pixel before the upsampling gets of a row behind it, along the row: width x 3 taps x channels.
  void gather(const Data* given, float* to) const {
    for (int x = 0; x < width; x++)
      for (int tap = 0; tap < 3; tap++, to += channels) {
        const Shares<4>& terms = columns.before[x][tap];
        for (int c = 0; c < channels; c += L) {
          V sum{};
          UNROLL for (int k = 0; k < 4; k++) sum += load<L>(given + long(terms.at[k]) * channels + c) * terms.share[k];
          store<L>(to + c, sum);
        }
      }
  }
};
