// bfloat16 on the matrix unit of Intel CPUs (AMX): a tile of weights, 16 outputs by up to 16 cells, times a tile of up to 16 lines by 16 pixels.
//
// Feature maps lie as in BFloat16; lines of one pitch are what a tile is loaded from.
#pragma once

#include "layers.h"

#if defined(__AVX512BF16__) && defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__linux__)
#define CMUNEXT_TILES

#include <sys/syscall.h>
#include <unistd.h>

struct alignas(64) TileConfig {  // as the unit reads it
  uint8_t palette = 0, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};  // of a row of each tile
  uint8_t rows[16] = {};
};

// Linux gives the tiles' registers to a process that asks for them.
static inline bool tiles_permitted() {
  constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

// What the instructions of tiles read and write is more than compilers are told: this keeps memory as it stands before and behind them.
static inline void settle(const void* memory) { asm volatile("" ::"r"(memory) : "memory"); }

// The configuration of the tiles that others in this process left on this thread comes back at the end, for a runtime may count on it.
class TileScope {
  TileConfig before;

 public:
  static inline thread_local int rows = 0, cells = 0;  // of the tile of weights, as it is configured

  TileScope() {
    settle(&before);
    _tile_storeconfig(&before);
    settle(&before);
    rows = cells = 0;
  }
  ~TileScope() {
    settle(&before);
    if (before.palette)
      _tile_loadconfig(&before);
    else
      _tile_release();
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
    _tile_loadconfig(&config);
    rows = new_rows, cells = new_cells;
  }
};

struct Tiles : BFloat16 {
  typedef TileScope Scope;
  static constexpr int TOGETHER = 4;
  static constexpr int AHEAD = 8;
};

template <>
struct Weights<Tiles> {
  typedef Tiles::Cell Cell;
  int block = 8, blocks = 0, rows = 0, columns = 0;
  int depth = 0;        // rows that are multiplied at a time
  Buffer<Cell> packed;  // [block][column][row / depth][output][row % depth]

  template <class Weight>
  void pack(int outputs, int inputs, int kernel_rows, int kernel_columns, Weight weight) {
    const int cells = rounded_up(inputs, Tiles::CHANNELS) / Tiles::CHANNELS, padded = rounded_up(outputs, 8);
    rows = cells * kernel_rows, columns = kernel_columns, block = padded % 16 ? 8 : 16, blocks = padded / block;
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
    for (; j + 4 <= vectors; j += 4) multiply<4>(weights, from + j, window_pitch, to + j, pitch);
    if (vectors - j == 3) multiply<3>(weights, from + j, window_pitch, to + j, pitch);
    if (vectors - j == 2) multiply<2>(weights, from + j, window_pitch, to + j, pitch);
    if (vectors - j == 1) multiply<1>(weights, from + j, window_pitch, to + j, pitch);
    settle(to);
  }

 private:
  // N vectors: a product takes three times as long as the unit needs between two that do not wait for each other.
  template <int N>
  void multiply(const Cell* weights, const Cell* const* from, size_t window_pitch, float* const* to, size_t pitch) const {
    const size_t stride = sizeof(Cell) * window_pitch, weights_stride = sizeof(Cell) * depth;
    _tile_zero(0);
    if constexpr (N > 1) _tile_zero(1);
    if constexpr (N > 2) _tile_zero(2);
    if constexpr (N > 3) _tile_zero(3);
    for (int column = 0; column < columns; column++)
      for (int row = 0; row < rows; row += depth, weights += block * depth) {
        const size_t offset = row * window_pitch + column;
        _tile_loadd(4, weights, weights_stride);
        _tile_loadd(5, from[0] + offset, stride);
        _tile_dpbf16ps(0, 4, 5);
        if constexpr (N > 1) {
          _tile_loadd(6, from[1] + offset, stride);
          _tile_dpbf16ps(1, 4, 6);
        }
        if constexpr (N > 2) {
          _tile_loadd(7, from[2] + offset, stride);
          _tile_dpbf16ps(2, 4, 7);
        }
        if constexpr (N > 3) {
          _tile_loadd(5, from[3] + offset, stride);
          _tile_dpbf16ps(3, 4, 5);
        }
      }
    _tile_stored(0, to[0], sizeof(float) * pitch);
    if constexpr (N > 1) _tile_stored(1, to[1], sizeof(float) * pitch);
    if constexpr (N > 2) _tile_stored(2, to[2], sizeof(float) * pitch);
    if constexpr (N > 3) _tile_stored(3, to[3], sizeof(float) * pitch);
  }
};

#endif
