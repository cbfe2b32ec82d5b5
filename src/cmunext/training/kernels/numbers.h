// Vectors of L float32 numbers, read from and written to memory in float32 or bfloat16, and GELU of them.
#pragma once

#include <cstdint>

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
static inline Vector<8> smaller(Vector<8> a, Vector<8> b) {
#if defined(__AVX__)
  return (Vector<8>)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return a < b ? a : b;
#endif
}
#if defined(__AVX512F__) && defined(__AVX512DQ__)
static inline Vector<16> smaller(Vector<16> a, Vector<16> b) { return (Vector<16>)_mm512_min_ps((__m512)a, (__m512)b); }
#endif
template <int L>
static inline Vector<L> magnitude(Vector<L> x) {
  return (Vector<L>)((typename Types<L>::Integers)x & 0x7fffffff);
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
// x, and 1 - e(u) else. Both are polynomials in u - TOP / 2 up to TOP (tools/gelu_approximations.py) and nothing from there on: a norm makes
// much of little, so what a channel that is switched off leaves must be nothing. What is infinite comes out as not a number.
constexpr float TOP = 5.5f;
constexpr float TAIL[20] = {0.00297976192f, -0.00909356214f, 0.0125036808f, -0.00994608738f, 0.00475384854f, -0.00112276932f, -0.000119012031f, 0.000180492149f, -4.94889682e-05f, -2.47282173e-06f, 5.17450962e-06f, -1.07367725e-06f, -1.74301505e-07f, 1.08386082e-07f, -4.58168836e-09f, -5.23845767e-09f, 5.86876658e-10f, 1.3564562e-10f, -1.55758531e-11f, -1.47428554e-12f};
constexpr float SLOPE[20] = {-0.0220275521f, 0.0505829453f, -0.0445437655f, 0.0125094578f, 0.00832958706f, -0.00870394241f, 0.00264371512f, 0.000359232945f, -0.000508309458f, 0.000115124043f, 2.51404581e-05f, -1.77703278e-05f, 1.44119315e-06f, 1.15624914e-06f, -2.61481745e-07f, -3.46058755e-08f, 1.45743346e-08f, 5.46865192e-11f, -3.18825993e-10f, 1.74454392e-11f};

template <int L>
static inline Vector<L> gelu(Vector<L> x) {
  const Vector<L> u = magnitude<L>(x), q = polynomial<L>(TAIL, smaller(u, all<L>(TOP)) - TOP / 2);
  return positive<L>(x) - u * (u < TOP ? q : all<L>(0));
}
template <int L>
static inline Vector<L> gelu_slope(Vector<L> x) {
  const Vector<L> u = magnitude<L>(x), polynomial_of_u = polynomial<L>(SLOPE, smaller(u, all<L>(TOP)) - TOP / 2);
  const Vector<L> e = u < TOP ? polynomial_of_u : all<L>(0);
  return x > 0 ? 1 - e : e;
}
