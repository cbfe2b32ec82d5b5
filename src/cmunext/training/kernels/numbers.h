// Vectors of L float32 numbers, read from and written to memory in float32 or bfloat16, and GELU of them.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512DQ__)
constexpr int WIDEST = 16, REGISTERS = 24;  // lanes of the widest vector; sums that are held in registers at a time
#elif defined(__aarch64__)
constexpr int WIDEST = 8, REGISTERS = 8;  // a vector is two registers
#else
constexpr int WIDEST = 8, REGISTERS = 12;
#endif

#define UNROLL _Pragma("GCC unroll 32")

template <int L>
struct Types {
  typedef float Vector __attribute__((vector_size(4 * L)));
  typedef float Loose __attribute__((vector_size(4 * L), aligned(4), may_alias));  // the same at any address
  typedef int32_t Integers __attribute__((vector_size(4 * L)));
  typedef uint32_t Bits __attribute__((vector_size(4 * L)));
  typedef uint16_t Halves __attribute__((vector_size(2 * L)));
  typedef uint16_t LooseHalves __attribute__((vector_size(2 * L), aligned(2), may_alias));
};
template <int L>
using Vector = typename Types<L>::Vector;

typedef uint16_t BFloat16;

template <int L>
static inline Vector<L> all(float x) {
  return x - Vector<L>{};
}
template <int L>
static inline Vector<L> load(const float* from) {
  return *reinterpret_cast<const typename Types<L>::Loose*>(from);
}
template <int L>
static inline Vector<L> load(const BFloat16* from) {
  typename Types<L>::Halves halves = *reinterpret_cast<const typename Types<L>::LooseHalves*>(from);
  return (Vector<L>)(__builtin_convertvector(halves, typename Types<L>::Bits) << 16);
}
template <int L>
static inline void store(float* to, Vector<L> x) {
  *reinterpret_cast<typename Types<L>::Loose*>(to) = x;
}
// Rounded to the nearest, ties to even; what is not a number stays so.
template <int L>
static inline void store(BFloat16* to, Vector<L> x) {
  typedef typename Types<L>::Bits Bits;
  const Bits bits = (Bits)x, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, nan = bits >> 16 | 64;
  const Bits kept = (Bits)(x == x ? (typename Types<L>::Integers)rounded : (typename Types<L>::Integers)nan);
  *reinterpret_cast<typename Types<L>::LooseHalves*>(to) = __builtin_convertvector(kept, typename Types<L>::Halves);
}

// max(x, 0); what is not a number stays so, so that the loss tells of it.
template <int L>
static inline Vector<L> positive(Vector<L> x) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
  if constexpr (L == 16) return (Vector<L>)_mm512_max_ps((__m512)all<L>(0), (__m512)x);
#endif
#if defined(__AVX__)
  if constexpr (L == 8) return (Vector<L>)_mm256_max_ps((__m256)all<L>(0), (__m256)x);
#endif
  return all<L>(0) > x ? all<L>(0) : x;
}
// min(|x|, top)
template <int L>
static inline Vector<L> magnitude(Vector<L> x, float top) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
  if constexpr (L == 16) return (Vector<L>)_mm512_range_ps((__m512)x, (__m512)all<L>(top), 0b1010);
#endif
  const Vector<L> u = (Vector<L>)((typename Types<L>::Integers)x & 0x7fffffff);
#if defined(__AVX__)
  if constexpr (L == 8) return (Vector<L>)_mm256_min_ps((__m256)u, (__m256)all<L>(top));
#endif
  return u < all<L>(top) ? u : all<L>(top);
}

// The even and the odd terms are summed apart, so that half as many additions wait for each other. N is even.
template <int L, int N>
static inline Vector<L> polynomial(const float (&terms)[N], Vector<L> t) {
  const Vector<L> squared = t * t;
  Vector<L> even = all<L>(terms[N - 2]), odd = all<L>(terms[N - 1]);
  UNROLL for (int k = N - 4; k >= 0; k -= 2) even = even * squared + terms[k], odd = odd * squared + terms[k + 1];
  return odd * t + even;
}

// GELU(x) = max(x, 0) - u q(u), u = |x|, where q is the tail of the normal distribution; its derivative is e(u) = q(u) - u phi(u) for negative
// x, and 1 - e(u) else. Both are polynomials in u - TOP / 2 up to TOP, exact to float32's last digits, or to a tenth of bfloat16's rounding:
// tools/gelu_approximations.py.
template <class Data>
struct Terms;
template <>
struct Terms<float> {
  static constexpr float TOP = 5.5f;
  static constexpr float TAIL[16] = {0.00297972304f, -0.00909359194f, 0.0125043374f, -0.00994558446f, 0.0047519682f, -0.00112417294f, -0.000116884054f, 0.000181991723f, -5.0720424e-05f, -3.26423856e-06f, 5.58148258e-06f, -8.44702356e-07f, -2.5438942e-07f, 7.10354442e-08f, 4.7090869e-09f, -1.93626915e-09f};
  static constexpr float SLOPE[20] = {-0.0220275521f, 0.0505829453f, -0.0445437655f, 0.0125094578f, 0.00832958706f, -0.00870394241f, 0.00264371512f, 0.000359232945f, -0.000508309458f, 0.000115124043f, 2.51404581e-05f, -1.77703278e-05f, 1.44119315e-06f, 1.15624914e-06f, -2.61481745e-07f, -3.46058755e-08f, 1.45743346e-08f, 5.46865192e-11f, -3.18825993e-10f, 1.74454392e-11f};
};
template <>
struct Terms<BFloat16> {
  static constexpr float TOP = 4.0f;
  static constexpr float TAIL[10] = {0.0227416847f, -0.0539870337f, 0.0540964715f, -0.0270449352f, 0.00428912649f, 0.00235146098f, -0.00120459078f, 4.19008866e-05f, 7.56415902e-05f, -1.22395522e-05f};
  static constexpr float SLOPE[10] = {-0.0852474198f, 0.108023815f, 0.000188149119f, -0.0725139305f, 0.0446916446f, -0.00162195414f, -0.00771514932f, 0.00199091597f, 0.000441321521f, -0.000174196612f};
};

template <class Data, int L>
static inline Vector<L> gelu(Vector<L> x) {
  typedef Terms<Data> T;
  const Vector<L> u = magnitude<L>(x, T::TOP);
  return positive<L>(x) - u * polynomial<L>(T::TAIL, u - T::TOP / 2);
}
template <class Data, int L>
static inline Vector<L> gelu_slope(Vector<L> x) {
  typedef Terms<Data> T;
  const Vector<L> e = polynomial<L>(T::SLOPE, magnitude<L>(x, T::TOP) - T::TOP / 2);
  return x > 0 ? 1 - e : e;
}
