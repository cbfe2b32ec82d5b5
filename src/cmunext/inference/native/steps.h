// The steps of a network from map to map.
#pragma once

#include <memory>

#include "dense.h"
#include "threads.h"

// The maps of a network, the threads that share the work of its steps, and memory for each of them.
template <class T>
struct Workspace {
  std::vector<Map<T>> maps;
  Threads threads;
  std::vector<Buffer<float>> scratch;

  explicit Workspace(int number) : threads(number), scratch(number) {}

  float* of_thread(int thread, size_t numbers) {
    if (scratch[thread].size < numbers) scratch[thread].resize(numbers);
    return scratch[thread].start;
  }

  template <class Work>
  void share(int pieces, Work work) {
    threads.share(pieces, [&](int piece, int thread) {
      [[maybe_unused]] typename T::Scope scope;
      work(piece, thread);
    });
  }
};

template <class T>
struct Step {
  virtual ~Step() = default;
  virtual void run(Workspace<T>& space, float* logits) const = 0;
  virtual int reach() const { return 1; }  // how far it looks around a pixel
};

// A convolution that looks around itself (depthwise, or dense with a group for each of its maps), and the 1 x 1 convolutions behind it. It goes
// over the map in strips, so that what one layer hands to the next stays in the cache.
template <class T>
class Pass : public Step<T> {
  typedef typename T::Cell Cell;
  static constexpr int STRIP = 8192;  // cells between two layers: 32 KB

  bool residual;
  int target;  // a map, or -1: the logits
  std::vector<int> sources;
  std::unique_ptr<Depthwise<T>> depthwise;  // the first layer is this, or dense[0]
  std::vector<Dense<T>> dense;

  // Rows of pixels, of a map or between two layers: pixel x of row y has its cells at start + y * row_pitch + x, `pitch` apart.
  struct Strip {
    Cell* start;
    size_t pitch, row_pitch;

    Strip from_row(int y) const { return {start + y * row_pitch, pitch, row_pitch}; }

    // Where the vectors of `rows` rows begin.
    std::vector<Cell*> vectors(int rows, int columns) const {
      std::vector<Cell*> places;
      places.reserve(rows * (columns / LANES));
      for (int y = 0; y < rows; y++)
        for (int x = 0; x < columns; x += LANES) places.push_back(start + y * row_pitch + x);
      return places;
    }
  };

 public:
  explicit Pass(Reader& from) {
    if (from.next()) depthwise = std::make_unique<Depthwise<T>>();
    residual = from.next();
    target = from.next();
    sources.resize(from.next());
    for (int& source : sources) source = from.next();
    int layers = from.next();
    if (depthwise) depthwise->read(from);
    dense.resize(layers - (depthwise ? 1 : 0));
    for (Dense<T>& layer : dense) layer.read(from);
  }

  int reach() const override { return (depthwise ? depthwise->kernel : dense[0].kernel) / 2; }

  void run(Workspace<T>& space, float* logits) const override {
    const Map<T>& map = space.maps[sources[0]];
    int widest = depthwise ? depthwise->channels : 0;
    for (const Dense<T>& layer : dense) widest = std::max(widest, rounded_up(layer.outputs, 16));
    const int lines = widest / T::CHANNELS, columns = rounded_up(map.width, LANES);
    int rows = std::max(STRIP / lines / columns, (T::TOGETHER * LANES + columns - 1) / columns);
    rows = std::min(rows, (map.height + space.threads.number() - 1) / space.threads.number());
    const int first_rows = is_lifted() ? Winograd::ROWS : rows;
    rows = std::min(rows, first_rows);
    space.share((map.height + first_rows - 1) / first_rows, [&](int strip, int thread) {
      run_strip(space, thread, strip * first_rows, std::min(map.height, (strip + 1) * first_rows), first_rows, rows, lines, logits);
    });
  }

 private:
  bool is_lifted() const { return !depthwise && !dense[0].lifted.empty(); }
  size_t lifted_size(const Map<T>& map) const { return is_lifted() ? Winograd::scratch_size(map.cells, map.width) : 0; }

  static Strip strip_of(const Map<T>& map, int y, int margin = 0) {
    return {map.line(y - margin, 0) - margin, size_t(map.pitch), size_t(map.cells) * map.pitch};
  }

  // The first layer over the rows from `first` to `end`, at most `first_rows`; the others over `rows` of them at a time.
  void run_strip(Workspace<T>& space, int thread, int first, int end, int first_rows, int rows, int lines, float* logits) const {
    const Map<T>& map = space.maps[sources[0]];
    const int layers = dense.size() + (depthwise ? 1 : 0);
    const size_t columns = rounded_up(map.width, LANES), first_pitch = first_rows * columns + MARGIN, pitch = rows * columns + MARGIN;
    const size_t sums_size = Dense<T>::sums_size(first_rows * columns / LANES), between_size = lines * pitch;
    const size_t first_size = first_pitch * (depthwise ? depthwise->channels : rounded_up(dense[0].outputs, 16)) / T::CHANNELS;
    float* sums = space.of_thread(thread, sums_size + first_size + 2 * between_size + lifted_size(map));
    float* scratch = sums + sums_size;
    Cell* cells = reinterpret_cast<Cell*>(scratch + lifted_size(map));
    const Strip before{cells, first_pitch, columns};
    const Strip between[2] = {{cells + first_size, pitch, columns}, {cells + first_size + between_size, pitch, columns}};
    run_first(space, first, end, layers == 1 && target >= 0 ? strip_of(space.maps[target], first) : before, sums, scratch);
    for (int y = first; y < end && (layers > 1 || target < 0); y += rows) {
      const int last = std::min(end, y + rows);
      Strip from = before.from_row(y - first);
      for (int n = 1; n < layers; n++) {
        const Strip to = n + 1 == layers && target >= 0 ? strip_of(space.maps[target], y) : between[n % 2];
        const auto sources_of = from.vectors(last - y, columns), places = to.vectors(last - y, columns);
        dense[n - (depthwise ? 1 : 0)].run(0, sources_of.data(), from.pitch, places.size(), places.data(), to.pitch, sums);
        from = to;
      }
      if (target < 0) write_logits(from, y, last, map, logits);
    }
    if (target >= 0) space.maps[target].clear_tails(first, end);
  }

  void run_first(const Workspace<T>& space, int first, int end, const Strip& to, float* sums, float* scratch) const {
    const Map<T>& map = space.maps[sources[0]];
    const auto places = to.vectors(end - first, rounded_up(map.width, LANES));
    for (size_t group = 0; group < sources.size(); group++) {
      const Map<T>& source = space.maps[sources[group]];
      if (is_lifted()) {
        dense[0].run_lifted(group, source, first, places.data(), to.pitch, sums, scratch);
        continue;
      }
      const Strip windows = strip_of(source, first, reach());
      const auto from = windows.vectors(end - first, rounded_up(map.width, LANES));
      if (depthwise)
        depthwise->run(residual, from.data(), source, places.size(), places.data(), to.pitch);
      else
        dense[0].run(group, from.data(), source.pitch, places.size(), places.data(), to.pitch, sums);
    }
  }

  void write_logits(const Strip& result, int first, int end, const Map<T>& map, float* logits) const {
    for (int output = 0; output < dense.back().outputs; output++)
      for (int y = first; y < end; y++)
        for (int x = 0; x < map.width; x += LANES) {
          const Cell* cells = result.start + output / T::CHANNELS * result.pitch + (y - first) * result.row_pitch + x;
          Vector v = T::channel(T::cells(cells), output % T::CHANNELS);
          memcpy(logits + (size_t(output) * map.height + y) * map.width + x, &v, sizeof(float) * std::min(LANES, map.width - x));
        }
  }
};

// The largest of 2 x 2.
template <class T>
class Pooling : public Step<T> {
  int source, target;

 public:
  explicit Pooling(Reader& from) : source(from.next()), target(from.next()) {}

  void run(Workspace<T>& space, float*) const override {
    const Map<T>&large = space.maps[source], &small = space.maps[target];
    space.share(small.height, [&](int y, int) {
      for (int cell = 0; cell < small.cells; cell++)
        for (int x = 0; x < small.width; x += LANES) {
          const auto *upper = large.line(2 * y, cell) + 2 * x, *lower = large.line(2 * y + 1, cell) + 2 * x;
          Vector largest[T::CHANNELS];
          UNROLL for (int c = 0; c < T::CHANNELS; c++) {
            Vector left = larger(T::channel(T::cells(upper), c), T::channel(T::cells(lower), c));
            Vector right = larger(T::channel(T::cells(upper + LANES), c), T::channel(T::cells(lower + LANES), c));
            largest[c] = larger(evens(left, right), odds(left, right));
          }
          T::write(small.line(y, cell) + x, largest);
        }
      small.clear_tails(y, y + 1);
    });
  }
};

// Bilinear upsampling by two (half-pixel centres) and the 3 x 3 convolution behind it. The nine products of the kernel commute with
// upsampling: they are taken at the low resolution, which is a quarter of the arithmetic, and then upsampled, shifted and summed. Of each column of
// the kernel two sums of products are enough for that. With u, m and l for its upper, middle and lower weight and x for the low map's rows, 0 to
// height - 1,
//
//   inner(y) = m x(y),  outer(y) = u x(y - 1) + l x(y),
//   4 even(y) = 3 (outer(y) + inner(y)) + outer(y + 1) + inner(y - 1),
//   4 odd(y)  = 3 (outer(y + 1) + inner(y)) + outer(y) + inner(y + 1)
//
// are the rows 2 y and 2 y + 1 of what the column gives. Upsampling repeats the edge, but the convolution pads the large map with zeros: at the top
// u x(0) moves from 4 even to 4 odd, at the bottom l x(height - 1) from 4 odd to 4 even. From left to right it is the same again; weights are kept as
// sixteenths.
template <class T>
class Upsampling : public Step<T> {
  typedef typename T::Cell Cell;
  static constexpr int COLUMNS = 3;
  static constexpr float SCALE = 1 / 16.f;  // of both directions' fours

  int source, target;
  std::vector<Weights<T>> inner, outer;  // of each column
  Follower follower;

 public:
  explicit Upsampling(Reader& from) : source(from.next()), target(from.next()), inner(COLUMNS), outer(COLUMNS) {
    const int inputs = from.next(), outputs = from.next();
    const float* weights = from.take(size_t(outputs) * inputs * COLUMNS * 3);
    for (int column = 0; column < COLUMNS; column++) {
      auto weight = [&](int output, int input, int row) { return SCALE * weights[((size_t(output) * inputs + input) * 3 + row) * COLUMNS + column]; };
      inner[column].pack(outputs, inputs, 1, 1, [&](int output, int input, int, int) { return weight(output, input, 1); });
      outer[column].pack(outputs, inputs, 2, 1, [&](int output, int input, int row, int) { return weight(output, input, 2 * row); });
    }
    follower.read(from, outputs);
  }

  void run(Workspace<T>& space, float*) const override {
    const Map<T>& small = space.maps[source];
    const Map<T> edges = edges_of(small);
    Products products;
    products.across = rounded_up(small.width, LANES) / LANES;
    products.pitch = products.across * LANES + MARGIN;
    products.rows = std::max(2, 256 / (products.across * LANES));  // at a time
    products.block = inner[0].block;
    const int blocks = inner[0].blocks, parts = std::min(space.threads.number(), (small.height + products.rows - 1) / products.rows);
    space.share(blocks * parts, [&](int n, int thread) {
      int part = n % parts;
      run_part(space, thread, edges, products, n / parts, small.height * part / parts, small.height * (part + 1) / parts);
    });
    space.maps[target].clear_tails(0, 2 * small.height);
  }

 private:
  // The sums of products of a block of outputs, of the rows that are needed at a time and one above and below, and those for the edges.
  struct Products {
    int rows, across, block, pitch;
    float* start;

    size_t size() const { return size_t(rows + 4) * 2 * COLUMNS * block * pitch; }
    float* inner(int y, int column, int output) const { return line(y % (rows + 2), column, output); }
    float* outer(int y, int column, int output) const { return line(y % (rows + 2), COLUMNS + column, output); }
    float* edge(int bottom, int column, int output) const { return line(rows + 2 + bottom, column, output); }

   private:
    float* line(int y, int sum, int output) const { return start + ((size_t(y) * 2 * COLUMNS + sum) * block + output) * pitch; }
  };

  // A map of two rows, the last of `map` and the first, between zeros: outer(0) of it is l x(height - 1), and outer(2) is u x(0).
  static Map<T> edges_of(const Map<T>& map) {
    Map<T> edges;
    edges.cells = map.cells;
    edges.resize(2, map.width, 1);
    for (int y : {0, 1}) memcpy(edges.line(y, 0), map.line(y ? 0 : map.height - 1, 0), sizeof(Cell) * map.cells * map.pitch);
    return edges;
  }

  // One block of outputs, for the rows of the small map from `first` to `end`.
  void run_part(Workspace<T>& space, int thread, const Map<T>& edges, Products products, int number, int first, int end) const {
    const Map<T>& small = space.maps[source];
    const size_t column_pitch = products.across * LANES + 2 * LANES;
    products.start = space.of_thread(thread, products.size() + 2 * T::CHANNELS * COLUMNS * column_pitch);
    float* columns = products.start + products.size();
    for (int column = 0; column < COLUMNS; column++) {
      if (first == 0) multiply(outer[column], number, products, edges, 1, 1, [&](int) { return products.edge(0, column, 0); });
      if (end == small.height) multiply(outer[column], number, products, edges, -1, 1, [&](int) { return products.edge(1, column, 0); });
    }
    int ready = std::max(0, first - 1);
    for (int y = first; y < end; y += products.rows) {
      const int last = std::min(end, y + products.rows), needed = std::min(small.height, last + 1), count = needed - ready;
      for (int column = 0; column < COLUMNS && count; column++)
        multiply(inner[column], number, products, small, ready, count, [&](int row) { return products.inner(ready + row, column, 0); });
      // With outer(height) where it is needed. A later part's first row is not; it may share a line with outer(height), which is written after it.
      for (int column = 0; column < COLUMNS && count; column++)
        multiply(outer[column], number, products, small, ready - 1, needed == small.height ? count + 1 : count,
                 [&](int row) { return products.outer(ready + row, column, 0); });
      ready = needed;
      for (int row = y; row < last; row++)
        for (int output = 0; output < products.block; output += T::CHANNELS) {
          sum_rows(small, products, output, row, columns, column_pitch);
          for (int half = 0; half < 2; half++) {
            const float* of_row = columns + half * T::CHANNELS * COLUMNS * column_pitch;
            write_row(space, number * products.block + output, 2 * row + half, of_row, column_pitch);
          }
        }
    }
  }

  // A block's sums of products over `rows` rows of a map, the windows' upper row being `first` and those after it.
  template <class Line>
  static void multiply(const Weights<T>& weights, int number, const Products& products, const Map<T>& map, int first, int rows, Line line_of_row) {
    const int vectors = products.across * rows;
    std::vector<const Cell*> from(vectors);
    std::vector<float*> to(vectors);
    for (int j = 0; j < vectors; j++) {
      from[j] = map.vector_at(first, j);
      to[j] = line_of_row(j / products.across) + j % products.across * LANES;
    }
    weights.multiply_block(number, from.data(), vectors, map.pitch, to.data(), products.pitch);
  }

  // For a cell of outputs, `columns` takes a quarter of what each column of the kernel gives in the two upsampled rows of `row`, still at the low
  // resolution from left to right: [row of two][channel][column of the kernel][x].
  void sum_rows(const Map<T>& small, const Products& products, int output, int row, float* columns, size_t pitch) const {
    const int above = std::max(row - 1, 0), below = std::min(row + 1, small.height - 1);
    for (int c = 0; c < T::CHANNELS; c++)
      for (int column = 0; column < COLUMNS; column++) {
        const float *outer[2] = {products.outer(row, column, output + c), products.outer(row + 1, column, output + c)};
        const float *upper = products.inner(above, column, output + c), *middle = products.inner(row, column, output + c);
        const float* lower = products.inner(below, column, output + c);
        float *even = columns + (c * COLUMNS + column) * pitch + LANES, *odd = even + T::CHANNELS * COLUMNS * pitch;
        for (int x = 0; x < small.width; x += LANES) {
          const Vector o0 = load(outer[0] + x), o1 = load(outer[1] + x), m = load(middle + x);
          store(even + x, 3 * (o0 + m) + (o1 + load(upper + x)));
          store(odd + x, 3 * (o1 + m) + (o0 + load(lower + x)));
        }
        if (row == 0) shift_edge(products.edge(0, column, output + c), even, odd, small.width);
        if (row == small.height - 1) shift_edge(products.edge(1, column, output + c), odd, even, small.width);
        for (float* sums : {even, odd}) sums[-1] = sums[0], sums[small.width] = sums[small.width - 1];  // upsampling repeats the edge
      }
  }

  static void shift_edge(const float* sums, float* from, float* to, int width) {
    for (int x = 0; x < width; x += LANES) {
      store(from + x, load(from + x) - load(sums + x));
      store(to + x, load(to + x) + load(sums + x));
    }
  }

  // Row `y` of a cell of the large map: what its three columns give, upsampled from left to right and shifted.
  void write_row(Workspace<T>& space, int output, int y, const float* columns, size_t pitch) const {
    const Map<T>&small = space.maps[source], &large = space.maps[target];
    Cell* to = large.line(y, output / T::CHANNELS);
    const Follower::Output outputs[2] = {{follower, output}, {follower, output + T::CHANNELS - 1}};
    for (int x = 0; x < small.width; x += LANES) {
      Vector left[T::CHANNELS], right[T::CHANNELS];
      for (int c = 0; c < T::CHANNELS; c++) {
        const float *a = columns + c * COLUMNS * pitch + LANES + x, *b = a + pitch, *d = b + pitch;
        const Vector inner = load(b), outer[2] = {load(a - 1) + load(d), load(a) + load(d + 1)};
        Vector even = 3 * (outer[0] + inner) + (outer[1] + load(b - 1));
        Vector odd = 3 * (outer[1] + inner) + (outer[0] + load(b + 1));
        if (x == 0) even[0] -= 4 * a[0];  // the column outside at the left, and at the right
        if (int e = small.width - 1 - x; e < LANES) odd[e] -= 4 * d[e];
        even = outputs[c].template apply<T>(even), odd = outputs[c].template apply<T>(odd);
        left[c] = woven_first(even, odd), right[c] = woven_last(even, odd);
      }
      T::write(to + 2 * x, left);
      if (2 * x + LANES < large.width) T::write(to + 2 * x + LANES, right);
    }
  }
};
