// Feature maps, and the memory they lie in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "vectors.h"

constexpr int ALIGNED = 64;  // bytes
constexpr int MARGIN = 16;   // zeros behind each line of a map: more than half of any kernel, and a vector, which pooling reads
static_assert(MARGIN >= LANES);

static inline int rounded_up(int x, int to) { return (x + to - 1) / to * to; }

template <class Item>
struct Buffer {  // aligned, and zeros at first
  std::vector<Item> memory;
  Item* start = nullptr;
  size_t size = 0;

  void resize(size_t items) {
    memory.assign(items + ALIGNED / sizeof(Item), Item{});
    start = reinterpret_cast<Item*>((reinterpret_cast<uintptr_t>(memory.data()) + ALIGNED - 1) & ~uintptr_t(ALIGNED - 1));
    size = items;
  }
};

// Rows from top to bottom, in a row its lines, one for each cell. What surrounds the map is zeros, as convolutions pad it: `rim` rows above and
// below, and at both sides the margins behind the lines.
template <class T>
struct Map {
  typedef typename T::Cell Cell;
  int channels = 0, level = 0;  // it has 1 / 2^level of the image's height and width
  int cells = 0, height = 0, width = 0, pitch = 0, rim = 0;
  Buffer<Cell> buffer;

  void resize(int image_height, int image_width, int wanted_rim) {
    height = image_height >> level, width = image_width >> level, rim = wanted_rim;
    pitch = rounded_up(width, LANES) + MARGIN;
    buffer.resize(size_t(height + 2 * rim) * cells * pitch + 2 * MARGIN + LANES);
  }
  Cell* line(int y, int cell) const { return buffer.start + MARGIN + (size_t(y + rim) * cells + cell) * pitch; }

  // Vector `number` of the pixels from row `first` on, counted along the rows: its place in the first line of its row.
  Cell* vector_at(int first, int number) const {
    const int across = rounded_up(width, LANES) / LANES;
    return line(first + number / across, 0) + number % across * LANES;
  }

  // Vectors end behind the width where that is no multiple of them: what they wrote there becomes zeros again.
  void clear_tails(int first_row, int end_row) const {
    int written = rounded_up(width, LANES);
    if (written > width)
      for (int y = first_row; y < end_row; y++)
        for (int cell = 0; cell < cells; cell++) memset(line(y, cell) + width, 0, sizeof(Cell) * (written - width));
  }
};
