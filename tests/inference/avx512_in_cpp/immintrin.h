// What the native runtime takes of AVX-512 and of the matrix unit (AMX), in plain C++: in place of the compiler's own header, so that the code for
// those processors runs on any. It says nothing of speed. Semantics after Intel's intrinsics guide and its instruction set reference, volume 2.
#pragma once

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

typedef float __m512 __attribute__((vector_size(64), may_alias));
typedef int32_t __m512i __attribute__((vector_size(64), may_alias));
typedef uint16_t __m512bh __attribute__((vector_size(64), may_alias));

static inline float of_bfloat16(uint16_t bits) {
  const uint32_t wide = uint32_t(bits) << 16;
  float x;
  memcpy(&x, &wide, 4);
  return x;
}

static inline uint16_t to_bfloat16(float x) {  // to the nearest, ties to even
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

typedef float __m256 __attribute__((vector_size(32)));
static inline __m256 _mm256_max_ps(__m256 a, __m256 b) { return a > b ? a : b; }
static inline __m256 _mm256_min_ps(__m256 a, __m256 b) { return a < b ? a : b; }
static inline __m512 _mm512_min_ps(__m512 a, __m512 b) { return a < b ? a : b; }
static inline __m512 _mm512_max_ps(__m512 a, __m512 b) { return a > b ? a : b; }

static inline __m512 _mm512_range_ps(__m512 a, __m512 b, int control) {
  if (control != 0b1010) abort();  // the smaller of both magnitudes
  for (int i = 0; i < 16; i++) a[i] = std::min(std::fabs(a[i]), std::fabs(b[i]));
  return a;
}

static inline __m512 _mm512_permutex2var_ps(__m512 low, __m512i index, __m512 high) {
  __m512 result;
  for (int i = 0; i < 16; i++) result[i] = index[i] & 16 ? high[index[i] & 15] : low[index[i] & 15];
  return result;
}

static inline __m512i _mm512_loadu_si512(const void* from) {
  __m512i x;
  memcpy(&x, from, 64);
  return x;
}

static inline void _mm512_storeu_si512(void* to, __m512i x) { memcpy(to, &x, 64); }
static inline __m512i _mm512_set1_epi32(uint32_t x) { return __m512i{} + int32_t(x); }
static inline __m512i _mm512_and_si512(__m512i a, __m512i b) { return a & b; }
static inline __m512i _mm512_slli_epi32(__m512i x, int bits) { return x << bits; }

static inline __m512bh _mm512_cvtne2ps_pbh(__m512 upper, __m512 lower) {
  __m512bh result;
  for (int i = 0; i < 16; i++) result[i] = to_bfloat16(lower[i]), result[16 + i] = to_bfloat16(upper[i]);
  return result;
}

static inline __m512 _mm512_dpbf16_ps(__m512 sum, __m512bh a, __m512bh b) {
  const __m512i upper = __m512i{} + int32_t(0xffff0000);
  for (int shift : {0, 16}) sum += (__m512)(((__m512i)a << shift) & upper) * (__m512)(((__m512i)b << shift) & upper);
  return sum;
}

#ifdef __AMX_TILE__
#define syscall(...) 0  // the system grants the tiles

struct TileState {
  uint8_t palette, start_row, reserved[14];
  uint16_t bytes[16];
  uint8_t rows[16];
};
static thread_local TileState tile_state;
static thread_local uint32_t tile_data[8][16][16];

static inline void tile_requires(bool condition, const char* what) {
  if (condition) return;
  fprintf(stderr, "the matrix unit refuses: %s\n", what);
  _exit(70);
}

static inline void _tile_loadconfig(const void* from) {
  memcpy(&tile_state, from, sizeof(tile_state));
  memset(tile_data, 0, sizeof(tile_data));
  for (int tile = 0; tile < 8; tile++) tile_requires(tile_state.rows[tile] <= 16 && tile_state.bytes[tile] <= 64, "a tile too large");
}
static inline void _tile_storeconfig(void* to) { memcpy(to, &tile_state, sizeof(tile_state)); }
static inline void _tile_release() { memset(&tile_state, 0, sizeof(tile_state)); }
static inline void _tile_zero(int tile) { memset(tile_data[tile], 0, sizeof(tile_data[tile])); }

static inline void _tile_loadd(int tile, const void* from, size_t stride) {
  tile_requires(tile_state.palette == 1 && tile_state.rows[tile], "a tile that is not configured");
  memset(tile_data[tile], 0, sizeof(tile_data[tile]));
  for (int row = 0; row < tile_state.rows[tile]; row++) memcpy(tile_data[tile][row], (const char*)from + row * stride, tile_state.bytes[tile]);
}

static inline void _tile_stored(int tile, void* to, size_t stride) {
  for (int row = 0; row < tile_state.rows[tile]; row++) memcpy((char*)to + row * stride, tile_data[tile][row], tile_state.bytes[tile]);
}

static inline void _tile_dpbf16ps(int sum, int a, int b) {
  const TileState& state = tile_state;
  tile_requires(state.rows[sum] == state.rows[a] && state.bytes[sum] == state.bytes[b] && state.bytes[a] == 4 * state.rows[b],
                "tiles whose sizes do not fit each other");
  for (int m = 0; m < state.rows[sum]; m++)
    for (int k = 0; k < state.rows[b]; k++)
      for (int n = 0; n < state.bytes[sum] / 4; n++) {
        const uint32_t x = tile_data[a][m][k], y = tile_data[b][k][n];
        float value;
        memcpy(&value, &tile_data[sum][m][n], 4);
        value += of_bfloat16(x) * of_bfloat16(y);
        value += of_bfloat16(x >> 16) * of_bfloat16(y >> 16);
        memcpy(&tile_data[sum][m][n], &value, 4);
      }
}
#endif
