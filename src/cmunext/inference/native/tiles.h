// bfloat16 on the matrix unit of Intel CPUs (AMX): a tile of weights, 16 outputs by up to 16 cells, times a tile of up to 16 lines by 16 pixels.
//
// Feature maps lie as in BFloat16; lines of one pitch are what a tile is loaded from. With CMUNEXT_EMULATE_TILES the unit is written out in C++,
// to test the rest of it on other CPUs.
#pragma once

#include "layers.h"

#if defined(__AVX512BF16__) && ((defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__linux__)) || defined(CMUNEXT_EMULATE_TILES))
#define CMUNEXT_TILES

struct alignas(64) TileConfig {  // as the unit reads it
  uint8_t palette = 0, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};  // of a row of each tile
  uint8_t rows[16] = {};
};

#if defined(CMUNEXT_EMULATE_TILES)

namespace emulated {

inline thread_local TileConfig config;
inline thread_local uint32_t tiles[8][16][16];

inline void load_config(const void* from) { memcpy(&config, from, sizeof config); }
inline void store_config(void* to) { memcpy(to, &config, sizeof config); }
inline void zero(int tile) { memset(tiles[tile], 0, sizeof tiles[tile]); }
inline void load(int tile, const void* from, size_t stride) {
  zero(tile);
  for (int row = 0; row < config.rows[tile]; row++)
    memcpy(tiles[tile][row], static_cast<const char*>(from) + row * stride, config.bytes[tile]);
}
inline void store(int tile, void* to, size_t stride) {
  for (int row = 0; row < config.rows[tile]; row++) memcpy(static_cast<char*>(to) + row * stride, tiles[tile][row], config.bytes[tile]);
}
inline float half(uint32_t pair, int second) {
  uint32_t bits = second ? pair & 0xffff0000 : pair << 16;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
inline void multiply(int sums, int a, int b) {
  for (int m = 0; m < config.rows[sums]; m++)
    for (int k = 0; k < config.bytes[a] / 4; k++)
      for (int n = 0; n < config.bytes[sums] / 4; n++) {
        float sum;
        memcpy(&sum, &tiles[sums][m][n], 4);
        for (int i = 0; i < 2; i++) sum += half(tiles[a][m][k], i) * half(tiles[b][k][n], i);
        memcpy(&tiles[sums][m][n], &sum, 4);
      }
}

}  // namespace emulated

#define TILE_CONFIGURE(from) emulated::load_config(from)
#define TILE_STORE_CONFIG(to) emulated::store_config(to)
#define TILE_RELEASE() (emulated::config = {})
#define TILE_ZERO(tile) emulated::zero(tile)
#define TILE_LOAD(tile, from, stride) emulated::load(tile, from, stride)
#define TILE_STORE(tile, to, stride) emulated::store(tile, to, stride)
#define TILE_MULTIPLY(sums, a, b) emulated::multiply(sums, a, b)
static inline bool tiles_permitted() { return true; }

#else

#include <sys/syscall.h>
#include <unistd.h>

#define TILE_CONFIGURE(from) _tile_loadconfig(from)
#define TILE_STORE_CONFIG(to) _tile_storeconfig(to)
#define TILE_RELEASE() _tile_release()
#define TILE_ZERO(tile) _tile_zero(tile)
#define TILE_LOAD(tile, from, stride) _tile_loadd(tile, from, stride)
#define TILE_STORE(tile, to, stride) _tile_stored(tile, to, stride)
#define TILE_MULTIPLY(sums, a, b) _tile_dpbf16ps(sums, a, b)

// Linux gives the tiles' registers to a process that asks for them.
static inline bool tiles_permitted() {
  constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

#endif

// What the instructions of tiles read and write is more than compilers are told: this keeps memory as it stands before and behind them.
static inline void settle(const void* memory) { asm volatile("" ::"r"(memory) : "memory"); }

// The configuration of the tiles that others in this process left on this thread comes back at the end, for a runtime may count on it.
class TileScope {
  TileConfig before;

 public:
  static inline thread_local int rows = 0, cells = 0;  // of the tile of weights, as it is configured

  TileScope() {
    settle(&before);
    TILE_STORE_CONFIG(&before);
    settle(&before);
    rows = cells = 0;
  }
  ~TileScope() {
    settle(&before);
    if (before.palette)
      TILE_CONFIGURE(&before);
    else
      TILE_RELEASE();
  }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;

  // Tiles 0 to 3 hold sums, 4 weights, 5 to 7 pixels.
  static void configure(int new_rows, int new_cells) {
    if (new_rows == rows && new_cells == cells) return;
    TileConfig config;
    config.palette = 1;
    for (int tile = 0; tile < 8; tile++) {
      config.rows[tile] = tile > 4 ? new_cells : new_rows;
      config.bytes[tile] = tile == 4 ? 4 * new_cells : 64;
    }
    settle(&config);
    TILE_CONFIGURE(&config);
    rows = new_rows, cells = new_cells;
  }
};

struct Tiles : BFloat16 {
  typedef TileScope Scope;
};

template <>
struct Weights<Tiles> {
  typedef Tiles::Cell Cell;
  int block = 8, blocks = 0, rows = 0, columns = 0;
  int depth = 0;        // rows that are multiplied at a time
  Buffer<Cell> packed;  // [block][column][row / depth][output][row % depth]

  template <class Weight>
  void pack(int outputs, int inputs, int kernel, Weight weight) {
    const int cells = rounded_up(inputs, Tiles::CHANNELS) / Tiles::CHANNELS, padded = rounded_up(outputs, 8);
    rows = cells * kernel, columns = kernel, block = padded % 16 ? 8 : 16, blocks = padded / block;
    for (depth = 16; rows % depth;) depth--;
    packed.resize(size_t(padded) * rows * columns);
    Cell* to = packed.start;
    for (int output = 0; output < padded; output += block)
      for (int column = 0; column < columns; column++)
        for (int first = 0; first < rows; first += depth)
          for (int i = 0; i < block; i++)
            for (int row = first; row < first + depth; row++)
              *to++ = cell_of_weights<Tiles>(output + i, outputs, row, column, inputs, weight);
  }

  void multiply_block(int number, const Cell* const* from, int vectors, size_t window_pitch, float* const* to, size_t pitch) const {
    TileScope::configure(block, depth);
    const Cell* weights = packed.start + size_t(number) * block * rows * columns;
    settle(weights);
    int j = 0;
    for (; j + 4 <= vectors; j += 4) multiply_four(weights, from + j, window_pitch, to + j, pitch);
    for (; j < vectors; j++) multiply_one(weights, from[j], window_pitch, to[j], pitch);
    settle(to);
  }

 private:
  void multiply_four(const Cell* weights, const Cell* const* from, size_t window_pitch, float* const* to, size_t pitch) const {
    const size_t stride = sizeof(Cell) * window_pitch, weights_stride = sizeof(Cell) * depth;
    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
    for (int column = 0; column < columns; column++)
      for (int row = 0; row < rows; row += depth, weights += block * depth) {
        const size_t offset = row * window_pitch + column;
        TILE_LOAD(4, weights, weights_stride);
        TILE_LOAD(5, from[0] + offset, stride);
        TILE_MULTIPLY(0, 4, 5);
        TILE_LOAD(6, from[1] + offset, stride);
        TILE_MULTIPLY(1, 4, 6);
        TILE_LOAD(7, from[2] + offset, stride);
        TILE_MULTIPLY(2, 4, 7);
        TILE_LOAD(5, from[3] + offset, stride);
        TILE_MULTIPLY(3, 4, 5);
      }
    TILE_STORE(0, to[0], sizeof(float) * pitch);
    TILE_STORE(1, to[1], sizeof(float) * pitch);
    TILE_STORE(2, to[2], sizeof(float) * pitch);
    TILE_STORE(3, to[3], sizeof(float) * pitch);
  }

  void multiply_one(const Cell* weights, const Cell* from, size_t window_pitch, float* to, size_t pitch) const {
    TILE_ZERO(0);
    for (int column = 0; column < columns; column++)
      for (int row = 0; row < rows; row += depth, weights += block * depth) {
        TILE_LOAD(4, weights, sizeof(Cell) * depth);
        TILE_LOAD(5, from + row * window_pitch + column, sizeof(Cell) * window_pitch);
        TILE_MULTIPLY(0, 4, 5);
      }
    TILE_STORE(0, to, sizeof(float) * pitch);
  }
};

#endif
