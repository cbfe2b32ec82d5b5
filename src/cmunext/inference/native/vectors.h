// Vectors of float32 numbers, and the formats of a feature map: float32, or pairs of bfloat16.
//
// A "cell" is the 32 bits that a pixel takes of a line: one channel in float32, two neighbouring channels in bfloat16. A line holds one
// cell of each pixel of an image row, so that a vector of cells is LANES neighbouring pixels.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) && defined(__AVX512DQ__)
#include <immintrin.h>
constexpr int LANES = 16, WIDE = 2, BLOCK = 8;  // WIDE vectors of pixels x BLOCK outputs are summed in registers at a time
#elif defined(__AVX__)
#include <immintrin.h>
constexpr int LANES = 8, WIDE = 3, BLOCK = 4;
#elif defined(__aarch64__)
constexpr int LANES = 4, WIDE = 3, BLOCK = 8;
#else
constexpr int LANES = 4, WIDE = 3, BLOCK = 4;
#endif

#define UNROLL _Pragma("GCC unroll 16")

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef float Loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias));  // the same at any address
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));

static inline Vector load(const float* from) { return *reinterpret_cast<const Loose*>(from); }
static inline void store(float* to, Vector x) { *reinterpret_cast<Loose*>(to) = x; }
static inline Vector all(float x) { return Vector{} + x; }

// The same value, in a register from here on: a compiler that has but 16 of them would rather load it anew for each of its uses.
template <class Any>
static inline Any held(Any x) {
#if defined(__SSE__) && !defined(__AVX512F__)
  asm("" : "+x"(x));
#endif
  return x;
}

#if defined(__AVX512F__) && defined(__AVX512DQ__)
static inline Vector larger(Vector a, Vector b) { return (Vector)_mm512_max_ps((__m512)a, (__m512)b); }
static inline Vector magnitude(Vector x, float top) {  // min(|x|, top)
  return (Vector)_mm512_range_ps((__m512)x, (__m512)all(top), 0b1010);
}
#elif defined(__AVX__)
static inline Vector larger(Vector a, Vector b) { return (Vector)_mm256_max_ps((__m256)a, (__m256)b); }
static inline Vector magnitude(Vector x, float top) {  // min(|x|, top)
  return (Vector)_mm256_min_ps((__m256)((Integers)x & 0x7fffffff), (__m256)all(top));
}
#else
static inline Vector larger(Vector a, Vector b) { return a > b ? a : b; }
static inline Vector magnitude(Vector x, float top) {
  Vector y = (Vector)((Integers)x & 0x7fffffff);
  return y < all(top) ? y : all(top);
}
#endif

// The even and the odd lanes of two vectors, and the way back.
template <int N, int... I>
struct Count : Count<N - 1, N - 1, I...> {};
template <int... I>
struct Count<0, I...> {
  static Vector every_second(Vector a, Vector b, int first) {
    return first ? __builtin_shufflevector(a, b, 2 * I + 1 ...) : __builtin_shufflevector(a, b, 2 * I...);
  }
  static Vector woven(Vector a, Vector b, int half) {
    return half ? __builtin_shufflevector(a, b, (LANES / 2 + I / 2 + I % 2 * LANES)...)
                : __builtin_shufflevector(a, b, (I / 2 + I % 2 * LANES)...);
  }
};
static inline Vector evens(Vector a, Vector b) { return Count<LANES>::every_second(a, b, 0); }
static inline Vector odds(Vector a, Vector b) { return Count<LANES>::every_second(a, b, 1); }
static inline Vector woven_first(Vector a, Vector b) { return Count<LANES>::woven(a, b, 0); }
static inline Vector woven_last(Vector a, Vector b) { return Count<LANES>::woven(a, b, 1); }

struct Nothing {};

struct Float32 {
  typedef Nothing Scope;  // what a thread holds while it computes
  typedef float Cell;
  typedef Vector Cells;
  static constexpr int CHANNELS = 1;  // of a cell
  static constexpr int TOGETHER = 2;  // vectors of pixels that a strip has at least, so that sums need not wait for each other
  static constexpr int AHEAD = 0;     // vectors whose sums are taken before those in front of them are written, where a unit of its own does it

  static Cell pack(const float* channels) { return channels[0]; }
  static Cells cells(const Cell* from) { return load(from); }
  static Vector dot(Vector sum, Cell weight, Cells x) { return sum + weight * x; }
  static Vector channel(Cells x, int) { return x; }
  static void write(Cell* to, const Vector* channels) { store(to, channels[0]); }

  // GELU(x) = max(x, 0) - u q(u), u = |x|, with the tail q of the normal distribution as a polynomial up to TOP: tools/gelu_approximations.py. Its
  // error has a root mean square of 3e-8, like float32 arithmetic itself. The even and the odd terms are summed apart, so that half as many
  // additions wait for each other.
  static Vector gelu(Vector x) {
    const Vector u = magnitude(x, TOP), t = u - all(TOP / 2), squared = t * t;
    Vector even = all(TAIL[14]), odd = all(TAIL[15]);
    UNROLL for (int k = 12; k >= 0; k -= 2) even = even * squared + all(TAIL[k]), odd = odd * squared + all(TAIL[k + 1]);
    return larger(x, all(0)) - u * (odd * t + even);
  }
  static constexpr float TOP = 5.5f;
  static constexpr float TAIL[16] = {0.00297972304f, -0.00909359194f, 0.0125043374f, -0.00994558446f, 0.0047519682f, -0.00112417294f, -0.000116884054f, 0.000181991723f, -5.0720424e-05f, -3.26423856e-06f, 5.58148258e-06f, -8.44702356e-07f, -2.5438942e-07f, 7.10354442e-08f, 4.7090869e-09f, -1.93626915e-09f};
};

#if defined(__AVX512BF16__)
struct BFloat16 {
  typedef Nothing Scope;
  typedef uint32_t Cell;
  typedef __m512i Cells;
  typedef int16_t Halves __attribute__((vector_size(64)));
  static constexpr int CHANNELS = 2;
  static constexpr int TOGETHER = 2;
  static constexpr int AHEAD = 0;

  static uint32_t rounded(float x) {  // to the nearest, ties to even
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  }
  static Cell pack(const float* channels) { return rounded(channels[0]) | rounded(channels[1]) << 16; }
  static Cells cells(const Cell* from) { return _mm512_loadu_si512(from); }
  static Vector dot(Vector sum, Cell weight, Cells x) {
    return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)_mm512_set1_epi32(weight));
  }
  static Vector channel(Cells x, int second) {
    return (Vector)(second ? _mm512_and_si512(x, _mm512_set1_epi32(0xffff0000)) : _mm512_slli_epi32(x, 16));
  }
  static void write(Cell* to, const Vector* channels) {
    const Halves both = (Halves)_mm512_cvtne2ps_pbh((__m512)channels[1], (__m512)channels[0]);
    _mm512_storeu_si512(to, (__m512i)__builtin_shufflevector(both, both, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23,  //
                                                             8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31));
  }

  // As in float32, but the tail is a line around each eighth of u: tools/gelu_approximations.py. Its error has a root mean square of 1e-4, a tenth
  // of what bfloat16's rounding makes.
  static Vector gelu(Vector x) {
    const Vector u = magnitude(x, (LINES - 1) / 8.f);
    const __m512i line = (__m512i)(u * all(8) + all(1 << 23));  // the number of the nearest in its low bits
    auto of_line = [&](const float* entries) {
      return (Vector)_mm512_permutex2var_ps((__m512)load(entries), line, (__m512)load(entries + LANES));
    };
    return larger(x, all(0)) - u * (of_line(CONSTANT) + of_line(SLOPE) * u);
  }
  static constexpr int LINES = 32;
  alignas(64) static constexpr float CONSTANT[LINES] = {0.49999699f, 0.499758154f, 0.497994751f, 0.493328542f, 0.484642923f, 0.47118026f, 0.452596694f, 0.428973377f, 0.400784999f, 0.368833005f, 0.334152997f, 0.297909468f, 0.261290342f, 0.22541222f, 0.191245094f, 0.159561038f, 0.130908519f, 0.105610162f, 0.0837801024f, 0.0653551742f, 0.0501341447f, 0.03781946f, 0.0280569512f, 0.0204703584f, 0.0146888327f, 0.0103667611f, 0.00719631184f, 0.00491365464f, 0.00330022373f, 0.00218042941f, 0.00141714956f, 0.00101118896f};
  alignas(64) static constexpr float SLOPE[LINES] = {-0.398715109f, -0.395710886f, -0.386550158f, -0.3717511f, -0.351979405f, -0.328095883f, -0.301094532f, -0.272034228f, -0.241970703f, -0.211894944f, -0.182682499f, -0.155057177f, -0.129570276f, -0.106595144f, -0.0863352269f, -0.0688425899f, -0.0540436842f, -0.041768726f, -0.031781625f, -0.0238078125f, -0.017558258f, -0.0127485842f, -0.00911299232f, -0.00641325722f, -0.00444339402f, -0.00303088548f, -0.0020353673f, -0.00134565774f, -0.000875880767f, -0.000561272667f, -0.000354096264f, -0.000247271179f};
};
#endif
