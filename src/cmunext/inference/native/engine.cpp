// CMUNeXt on a CPU: reads a network from what program.py writes, and runs it. The interface is plain C, for ctypes.
#include "steps.h"
#include "tiles.h"

namespace {

constexpr int VERSION = 1;  // of the interface between program.py and this; __init__.py has the same

enum Kind { PASS, POOLING, UPSAMPLING };

struct Network {
  virtual ~Network() = default;
  virtual void run(const float* image, int height, int width, float* logits) = 0;
};

template <class T>
class NetworkIn : public Network {
  Workspace<T> space;
  std::vector<std::unique_ptr<Step<T>>> steps;
  int rim = 1, ready_height = 0, ready_width = 0;  // the size that the maps are for

 public:
  NetworkIn(Reader from, int threads) : space(threads) {
    space.maps.resize(from.next());
    for (Map<T>& map : space.maps) {
      map.channels = from.next(), map.level = from.next();
      map.cells = rounded_up(map.channels, T::CHANNELS) / T::CHANNELS;
    }
    steps.resize(from.next());
    for (auto& step : steps) {
      int kind = from.next();
      if (kind == PASS) step = std::make_unique<Pass<T>>(from);
      if (kind == POOLING) step = std::make_unique<Pooling<T>>(from);
      if (kind == UPSAMPLING) step = std::make_unique<Upsampling<T>>(from);
      rim = std::max(rim, step->reach());
    }
  }

  void run(const float* image, int height, int width, float* logits) override {
    Map<T>& input = space.maps[0];
    if (height != ready_height || width != ready_width) {
      ready_height = ready_width = 0;
      for (Map<T>& map : space.maps) map.resize(height, width, rim);
      ready_height = height, ready_width = width;
    }
    read_image(image, input);
    for (const auto& step : steps) step->run(space, logits);
  }

 private:
  static void read_image(const float* image, const Map<T>& input) {
    for (int y = 0; y < input.height; y++)
      for (int cell = 0; cell < input.cells; cell++)
        for (int x = 0; x < input.width; x += LANES) {
          Vector channels[T::CHANNELS] = {};
          for (int c = 0; c < T::CHANNELS && cell * T::CHANNELS + c < input.channels; c++)
            memcpy(&channels[c], image + (size_t(cell * T::CHANNELS + c) * input.height + y) * input.width + x,
                   sizeof(float) * std::min(LANES, input.width - x));
          T::write(input.line(y, cell) + x, channels);
        }
  }
};

}  // namespace

extern "C" {

int cmunext_version() { return VERSION; }

// What this build computes bfloat16 with: 0 nothing, 1 vectors, 2 tiles.
int cmunext_bfloat16() {
#if defined(CMUNEXT_TILES)
  if (tiles_permitted()) return 2;
#endif
#if defined(__AVX512BF16__)
  return 1;
#else
  return 0;
#endif
}

// A network, which `cmunext_close` frees; null where its memory is not to be had or this build does not compute in bfloat16.
void* cmunext_open(const int32_t* integers, const float* numbers, int threads, int bfloat16) {
  try {
    if (!bfloat16) return new NetworkIn<Float32>({integers, numbers}, threads);
#if defined(CMUNEXT_TILES)
    if (cmunext_bfloat16() == 2) return new NetworkIn<Tiles>({integers, numbers}, threads);
#endif
#if defined(__AVX512BF16__)
    return new NetworkIn<BFloat16>({integers, numbers}, threads);
#endif
  } catch (const std::exception&) {
  }
  return nullptr;
}

// image: float32 channels x height x width -> logits: float32 classes x height x width. Gives 0, or 1 where memory is not to be had.
// One call at a time for a network.
int cmunext_run(void* network, const float* image, int height, int width, float* logits) {
  try {
    static_cast<Network*>(network)->run(image, height, width, logits);
    return 0;
  } catch (const std::exception&) {
    return 1;
  }
}

void cmunext_close(void* network) { delete static_cast<Network*>(network); }
}
