// The interface of the kernels, in plain C. Maps are pixels x channels, contiguous: `half` in bfloat16, else in float32, as all else is.
#include "bottleneck.h"
#include "convolution.h"
#include "depthwise.h"
#include "upsampling.h"

namespace {

// run(number) with a number of the map's format
template <class Run>
void with_format(int half, const Run& run) {
  half ? run(BFloat16()) : run(float());
}

// run(pass) with the pass for these layers and this format
template <class Data, class Run>
void with_norm(int relu, long pixels, int channels, int threads, const Run& run) {
  if (relu) run(NormPass<ReluAfter, Data>(pixels, channels, threads));
  else run(NormPass<GeluBefore<Data>, Data>(pixels, channels, threads));
}

template <class Data, class Run>
void with_upsampling(int images, int height, int width, int channels, int threads, const Run& run) {
  if (channels % WIDEST) run(UpsamplingPass<Data, 8>(images, height, width, channels, threads));
  else run(UpsamplingPass<Data, WIDEST>(images, height, width, channels, threads));
}

template <class Run>
void with_bottleneck(const Bottleneck& bottleneck, long pixels, int threads, const Run& run) {
  if ((bottleneck.in | bottleneck.hidden | bottleneck.out) % WIDEST) run(BottleneckPass<8>(bottleneck, pixels, threads));
  else run(BottleneckPass<WIDEST>(bottleneck, pixels, threads));
}

template <class Data, int L, class Run>
void with_depthwise(const Convolution& map, int kernel, int threads, const Run& run) {
  if (kernel == 5) run(DepthwisePass<Data, L, 5>(map, threads));
  else if (kernel == 7) run(DepthwisePass<Data, L, 7>(map, threads));
  else run(DepthwisePass<Data, L, 9>(map, threads));
}

}  // namespace

extern "C" {

int cmunext_kernels_version() { return 3; }

// The least number of pixels of which whole rows of vectors are made; a map must be a multiple of it.
int cmunext_norm_pixels(int channels) { return NormPass<GeluBefore<float>, float>::width_of(channels) / channels; }

// fixed: by the statistics of `norm`, which stay; else by the batch's.
void cmunext_norm(int half, int relu, int fixed, const void* x, long pixels, int channels, Norm norm, void* out, int threads) {
  with_format(half, [&](auto number) {
    typedef decltype(number) Data;
    with_norm<Data>(relu, pixels, channels, threads, [&](const auto& pass) {
      fixed ? pass.apply((const Data*)x, norm, (Data*)out) : pass.forward((const Data*)x, norm, (Data*)out);
    });
  });
}

void cmunext_norm_gradient(int half, int relu, const void* x, const void* given, long pixels, int channels, Norm norm, void* of_x,
                           float* of_weight, float* of_bias, int threads) {
  with_format(half, [&](auto number) {
    typedef decltype(number) Data;
    with_norm<Data>(relu, pixels, channels, threads, [&](const auto& pass) {
      pass.backward((const Data*)x, (const Data*)given, norm, (Data*)of_x, of_weight, of_bias);
    });
  });
}

void cmunext_bottleneck(const float* x, long pixels, Bottleneck bottleneck, float* out, int threads) {
  with_bottleneck(bottleneck, pixels, threads, [&](const auto& pass) { pass.forward(x, out); });
}

void cmunext_bottleneck_gradient(const float* x, const float* given, long pixels, Bottleneck bottleneck, float* of_x,
                                 BottleneckGradients gradients, int threads) {
  with_bottleneck(bottleneck, pixels, threads, [&](const auto& pass) { pass.backward(x, given, of_x, gradients); });
}

void cmunext_upsampling(int half, const void* products, const float* bias, int images, int height, int width, int channels, void* out,
                        int threads) {
  with_format(half, [&](auto number) {
    typedef decltype(number) Data;
    with_upsampling<Data>(images, height, width, channels, threads,
                          [&](const auto& pass) { pass.forward((const Data*)products, bias, (Data*)out); });
  });
}

void cmunext_upsampling_gradient(int half, const void* given, int images, int height, int width, int channels, void* of_products,
                                 float* of_bias, int threads) {
  with_format(half, [&](auto number) {
    typedef decltype(number) Data;
    with_upsampling<Data>(images, height, width, channels, threads,
                          [&](const auto& pass) { pass.backward((const Data*)given, (Data*)of_products, of_bias); });
  });
}

void cmunext_convolution_gradient(const float* x, const float* given, Convolution map, float* of_weight, float* of_bias, int threads) {
  if ((map.inputs / map.groups | map.outputs / map.groups) % WIDEST) ConvolutionPass<8>(map, threads).gradient(x, given, of_weight, of_bias);
  else ConvolutionPass<WIDEST>(map, threads).gradient(x, given, of_weight, of_bias);
}

// kernel: 5, 7 or 9.
void cmunext_depthwise_gradient(int half, const void* x, const void* given, Convolution map, int kernel, float* of_weight, float* of_bias,
                                int threads) {
  with_format(half, [&](auto number) {
    typedef decltype(number) Data;
    auto run = [&](const auto& pass) { pass.gradient((const Data*)x, (const Data*)given, of_weight, of_bias); };
    if (map.inputs % WIDEST) with_depthwise<Data, 8>(map, kernel, threads, run);
    else with_depthwise<Data, WIDEST>(map, kernel, threads, run);
  });
}
}
