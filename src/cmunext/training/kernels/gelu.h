// GELU and its derivative, as exact as the format of the map asks for.
//
// GELU(x) = max(x, 0) - u q(u), u = |x|, where q is the tail of the normal distribution; its derivative is e(u) = q(u) - u phi(u) for negative
// x, and 1 - e(u) else. A norm makes much of little, so what a channel that is switched off leaves must be nothing: from some u on q and e are. What
// is infinite comes out as not a number. tools/gelu_approximations.py has the numbers and their errors.
#pragma once

#include <type_traits>

#include "numbers.h"

// For a map in float32 q and e are polynomials in u - TOP / 2.
constexpr float TOP = 5.5f;
constexpr float TAIL[20] = {0.00297976192f, -0.00909356214f, 0.0125036808f, -0.00994608738f, 0.00475384854f, -0.00112276932f, -0.000119012031f, 0.000180492149f, -4.94889682e-05f, -2.47282173e-06f, 5.17450962e-06f, -1.07367725e-06f, -1.74301505e-07f, 1.08386082e-07f, -4.58168836e-09f, -5.23845767e-09f, 5.86876658e-10f, 1.3564562e-10f, -1.55758531e-11f, -1.47428554e-12f};
constexpr float SLOPE[20] = {-0.0220275521f, 0.0505829453f, -0.0445437655f, 0.0125094578f, 0.00832958706f, -0.00870394241f, 0.00264371512f, 0.000359232945f, -0.000508309458f, 0.000115124043f, 2.51404581e-05f, -1.77703278e-05f, 1.44119315e-06f, 1.15624914e-06f, -2.61481745e-07f, -3.46058755e-08f, 1.45743346e-08f, 5.46865192e-11f, -3.18825993e-10f, 1.74454392e-11f};

// The even and the odd terms are summed apart, so that half as many additions wait for each other. N is even.
template <int L, int N>
static inline Vector<L> polynomial(const float (&terms)[N], Vector<L> t) {
  const Vector<L> squared = t * t;
  Vector<L> even = all<L>(terms[N - 2]), odd = all<L>(terms[N - 1]);
  UNROLL for (int k = N - 4; k >= 0; k -= 2) even = even * squared + terms[k], odd = odd * squared + terms[k + 1];
  return odd * t + even;
}
template <int L, int N>
static inline Vector<L> up_to_top(const float (&terms)[N], Vector<L> u) {
  const Vector<L> y = polynomial<L>(terms, smaller(u, all<L>(TOP)) - TOP / 2);
  return u < TOP ? y : all<L>(0);
}

// For a map in bfloat16, where registers can be looked up in, each is a parabola around the nearest of PARABOLAS numbers, of which the last is
// nothing. GELU is right to 1.1e-5 and its derivative to 4.7e-5, where bfloat16 rounds by up to 2e-3, and what they are far out to 0.8 %.
constexpr int PARABOLAS = 32;
constexpr float A_UNIT = 5.5f;
alignas(64) constexpr float TAIL_NEAR[3][PARABOLAS] = {
    {0.50000155f, 0.500314832f, 0.502696335f, 0.507968664f, 0.514962852f, 0.520549715f, 0.520436466f, 0.510419011f, 0.487635016f, 0.451396674f, 0.403374195f, 0.347141743f, 0.287302166f, 0.228497118f, 0.174583197f, 0.128143892f, 0.0903726369f, 0.0612539053f, 0.0399140753f, 0.0250127763f, 0.0150796575f, 0.00874907244f, 0.00488669006f, 0.00262835273f, 0.00136173947f, 0.000679771707f, 0.000327039073f, 0.000151671702f, 6.78221113e-05f, 2.92473287e-05f, 1.21654812e-05f, 0},
    {-0.399250776f, -0.404962897f, -0.42238912f, -0.44569397f, -0.467855483f, -0.481718302f, -0.481687784f, -0.464896053f, -0.431591362f, -0.384754956f, -0.329164267f, -0.270233423f, -0.212952703f, -0.161151126f, -0.117167234f, -0.0818886831f, -0.0550430082f, -0.0355995074f, -0.0221634489f, -0.013287832f, -0.00767451385f, -0.00427139271f, -0.00229159836f, -0.00118542532f, -0.000591400662f, -0.000284614391f, -0.000132155707f, -5.92171928e-05f, -2.56102721e-05f, -1.06917914e-05f, -4.30939645e-06f, 0},
    {0.00905400235f, 0.0356183313f, 0.0677938834f, 0.0936325267f, 0.111216292f, 0.119822763f, 0.119905606f, 0.112865999f, 0.100690827f, 0.0855529979f, 0.0694613978f, 0.0540188029f, 0.0403088331f, 0.0288992785f, 0.0199275687f, 0.0132269012f, 0.00845639687f, 0.00521039637f, 0.00309534278f, 0.00177362654f, 0.000980547979f, 0.000523174182f, 0.000269460928f, 0.000134000045f, 6.43502572e-05f, 2.98468731e-05f, 1.33724161e-05f, 5.78809795e-06f, 2.4206031e-06f, 9.78171101e-07f, 3.81985842e-07f, 0}};
alignas(64) constexpr float SLOPE_NEAR[3][PARABOLAS] = {
    {0.500006199f, 0.501239955f, 0.510111988f, 0.52713871f, 0.542380869f, 0.537691236f, 0.493627787f, 0.397836387f, 0.251115084f, 0.0685869306f, -0.124315672f, -0.299188733f, -0.432361782f, -0.510304153f, -0.531355977f, -0.503958285f, -0.442686945f, -0.363772303f, -0.281477988f, -0.206036031f, -0.143153653f, -0.0946570039f, -0.0596878007f, -0.0359517895f, -0.0207133126f, -0.0114279315f, -0.00604357291f, -0.00306610437f, -0.00149333605f, -0.000698676857f, -0.000314181903f, 0},
    {-0.799117267f, -0.821647763f, -0.886828601f, -0.962532818f, -1.01150024f, -1.00109327f, -0.913810134f, -0.752218425f, -0.537196696f, -0.300860584f, -0.0771821439f, 0.106421307f, 0.234200552f, 0.30311814f, 0.320504248f, 0.299856991f, 0.25643304f, 0.203828201f, 0.15207468f, 0.107179374f, 0.0716689453f, 0.0456138328f, 0.0276979562f, 0.0160765201f, 0.00893248897f, 0.00475675939f, 0.00243018684f, 0.00119211909f, 0.000561898749f, 0.000254635001f, 0.000111001187f, 0},
    {0.0361903012f, 0.141187966f, 0.262019575f, 0.346439987f, 0.385816962f, 0.38009724f, 0.336847991f, 0.268667489f, 0.189859301f, 0.113335744f, 0.0484798774f, 0.00027857942f, -0.0303769466f, -0.0456130914f, -0.0492025353f, -0.045312319f, -0.0376178697f, -0.0288505498f, -0.0207132697f, -0.014033597f, -0.00902003702f, -0.0055203028f, -0.00322547951f, -0.00180292549f, -0.000965587562f, -0.000496105466f, -0.000244771043f, -0.000116066651f, -5.29315403e-05f, -2.32291368e-05f, -9.81471658e-06f, 0}};

#if defined(__AVX512F__) && defined(__AVX512DQ__)
static inline Vector<16> nearest_parabola(const float (&terms)[3][PARABOLAS], Vector<16> u) {
  const Vector<16> within = smaller(u, all<16>((PARABOLAS - 1) / A_UNIT));
  const __m512i nearest = (__m512i)(within * A_UNIT + float(1 << 23));  // its number in the low bits
  auto term = [&](int power) {
    return (Vector<16>)_mm512_permutex2var_ps((__m512)load<16>(terms[power]), nearest, (__m512)load<16>(terms[power] + 16));
  };
  return (term(2) * within + term(1)) * within + term(0);
}
#endif

template <class Data, int L>
static inline Vector<L> approximated(const float (&polynomial)[20], const float (&parabolas)[3][PARABOLAS], Vector<L> u) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
  if constexpr (L == 16 && std::is_same_v<Data, BFloat16>) return nearest_parabola(parabolas, u);
#endif
  return up_to_top<L>(polynomial, u);
}

template <class Data, int L>
static inline Vector<L> gelu(Vector<L> x) {
  const Vector<L> u = magnitude<L>(x);
  return positive<L>(x) - u * approximated<Data, L>(TAIL, TAIL_NEAR, u);
}
template <class Data, int L>
static inline Vector<L> gelu_slope(Vector<L> x) {
  const Vector<L> e = approximated<Data, L>(SLOPE, SLOPE_NEAR, magnitude<L>(x));
  return x > 0 ? 1 - e : e;
}
