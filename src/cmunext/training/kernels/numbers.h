// Vectors of L float32 numbers, read from and written to memory in float32 or bfloat16.
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
#if defined(__AVX512BF16__) && defined(__AVX512VL__)
  if constexpr (L == 16) return (void)_mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh((__m512)x));
  if constexpr (L == 8) return (void)_mm_storeu_si128((__m128i*)to, (__m128i)_mm256_cvtneps_pbh((__m256)x));
#endif
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
