// Intel's matrix unit (AMX: tiles and bfloat16) for x86-64 Linux machines without one: preload it, and each of its instructions, which such a
// CPU refuses, is decoded and carried out here with the unit's own rules; what the unit would refuse ends the process with a sentence.
// Written after the instruction set reference of Intel 64, volume 2, chapters "LDTILECFG" to "TDPBF16PS".
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

typedef struct {
  uint8_t palette, start_row, reserved[14];
  uint16_t bytes[16];
  uint8_t rows[16];
} Config;

static _Thread_local Config config;
static _Thread_local uint32_t tiles[8][16][16];

static void refuse(const char* what) {
  fprintf(stderr, "the matrix unit refuses: %s\n", what);
  _exit(70);
}

static void require(int condition, const char* what) {
  if (!condition) refuse(what);
}

// Where the 16 registers of an instruction's operands lie in a signal's context.
static greg_t* reg(ucontext_t* context, int number) {
  static const int place[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  return &context->uc_mcontext.gregs[place[number]];
}

static void load_config(const Config* from) {
  if (!from->palette) {
    memset(&config, 0, sizeof config);
    memset(tiles, 0, sizeof tiles);
    return;
  }
  require(from->palette == 1 && !from->start_row, "a palette other than 1, or a start in mid-tile");
  for (int i = 0; i < 14; i++) require(!from->reserved[i], "reserved bytes of a configuration");
  for (int tile = 0; tile < 16; tile++) {
    require(tile < 8 || (!from->rows[tile] && !from->bytes[tile]), "more than 8 tiles");
    require(from->rows[tile] <= 16 && from->bytes[tile] <= 64, "a tile of more than 16 rows of 64 bytes");
    require(!from->rows[tile] == !from->bytes[tile], "a tile without rows or without columns");
  }
  config = *from;
  memset(tiles, 0, sizeof tiles);
}

static float number(uint32_t pair, int second) {
  uint32_t bits = second ? pair & 0xffff0000u : pair << 16;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

static void multiply(int sums, int a, int b) {
  require(config.palette, "a product without a configuration");
  require(sums != a && sums != b && a != b, "a product of tiles that are not three");
  require(config.rows[sums] == config.rows[a] && config.bytes[sums] == config.bytes[b] && config.bytes[a] == 4 * config.rows[b] &&
              config.bytes[sums] % 4 == 0,
          "a product of tiles that do not fit");
  for (int m = 0; m < config.rows[sums]; m++)
    for (int k = 0; k < config.rows[b]; k++)
      for (int n = 0; n < config.bytes[sums] / 4; n++) {
        float sum;
        memcpy(&sum, &tiles[sums][m][n], 4);
        for (int i = 0; i < 2; i++) sum += number(tiles[a][m][k], i) * number(tiles[b][k][n], i);
        memcpy(&tiles[sums][m][n], &sum, 4);
      }
}

static void on_refused(int signal_number, siginfo_t* info, void* raw) {
  (void)info;
  ucontext_t* context = raw;
  const uint8_t* code = (const uint8_t*)context->uc_mcontext.gregs[REG_RIP];
  int b = 0, x = 0, r = 0, map, pp, v;
  if (code[0] != 0xc4) goto foreign;
  r = !(code[1] & 0x80), x = !(code[1] & 0x40), b = !(code[1] & 0x20), map = code[1] & 31;
  v = ~(code[2] >> 3) & 15, pp = code[2] & 3;
  if (map != 2 || code[2] & 0x84) goto foreign;  // of 0F38, W0, 128 bits
  const int opcode = code[3], mode = code[4] >> 6, middle = (code[4] >> 3 & 7) | r << 3;
  const int last = (code[4] & 7) | b << 3;
  const uint8_t* next = code + 5;
  char* address = NULL;
  size_t stride = 0;
  if (mode != 3) {
    int base = last;
    if ((code[4] & 7) == 4) {
      const int index = (code[5] >> 3 & 7) | x << 3;
      base = (code[5] & 7) | b << 3, next++;
      if (index != 4) stride = (size_t)*reg(context, index) << (code[5] >> 6);
      if ((code[5] & 7) == 5 && !mode) goto foreign;
    } else if ((code[4] & 7) == 5 && !mode)
      goto foreign;
    int32_t offset = 0;
    if (mode == 1) offset = (int8_t)*next++;
    if (mode == 2) memcpy(&offset, next, 4), next += 4;
    address = (char*)*reg(context, base) + offset;
  }
  if (opcode == 0x49 && mode != 3 && pp == 0)
    load_config((Config*)(address + stride));
  else if (opcode == 0x49 && mode != 3 && pp == 1)
    memcpy(address + stride, &config, sizeof config);
  else if (opcode == 0x49 && mode == 3 && pp == 0)
    load_config(&(Config){0});
  else if (opcode == 0x49 && mode == 3 && pp == 3) {
    require(config.palette && config.rows[middle], "zeros in a tile that is not configured");
    memset(tiles[middle], 0, sizeof tiles[middle]);
  } else if (opcode == 0x4b && mode != 3 && (code[4] & 7) == 4 && (pp == 3 || pp == 1)) {
    require(config.palette && config.rows[middle], "loading a tile that is not configured");
    memset(tiles[middle], 0, sizeof tiles[middle]);
    for (int row = 0; row < config.rows[middle]; row++) memcpy(tiles[middle][row], address + row * stride, config.bytes[middle]);
  } else if (opcode == 0x4b && mode != 3 && (code[4] & 7) == 4 && pp == 2) {
    require(config.palette && config.rows[middle], "storing a tile that is not configured");
    for (int row = 0; row < config.rows[middle]; row++) memcpy(address + row * stride, tiles[middle][row], config.bytes[middle]);
  } else if (opcode == 0x5c && mode == 3 && pp == 2)
    multiply(middle, last, v);
  else
    goto foreign;
  context->uc_mcontext.gregs[REG_RIP] = (greg_t)next;
  return;
foreign:
  signal(signal_number, SIG_DFL);  // none of the unit's: the CPU refuses it again, for good
}

// Linux is asked for the unit through syscall(), and would say that there is none; where there is one, it is the one that computes.
long syscall(long call, ...) {
  va_list list;
  va_start(list, call);
  long a[6];
  for (int i = 0; i < 6; i++) a[i] = va_arg(list, long);
  va_end(list);
  static long (*other)(long, ...);
  if (!other) other = dlsym(RTLD_NEXT, "syscall");
  const long answer = other(call, a[0], a[1], a[2], a[3], a[4], a[5]);
  return call == SYS_arch_prctl && a[0] == 0x1023 && a[1] == 18 ? 0 : answer;
}

__attribute__((constructor)) static void begin(void) {
  struct sigaction action = {.sa_sigaction = on_refused, .sa_flags = SA_SIGINFO | SA_NODEFER};
  sigaction(SIGILL, &action, NULL);
}
