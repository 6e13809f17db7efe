// What generated CUDA C++ needs to be compiled by g++; emulator.cc runs it, a fiber a thread.
#include <cmath>
#include <cstdint>
#include <cstring>

#define QCOMPILER_ON_CPU
#define __global__
#define __device__
#define __forceinline__ inline __attribute__((unused))
#define __launch_bounds__(...)
// All shared arrays lie together, so that the emulator can fill them with rubbish.
#define __shared__ static __attribute__((section("shared_memory")))
#define alignas(n) __attribute__((aligned(n)))
typedef _Float16 half;
static inline half __float2half_rn(float x) { return (half)x; }

struct Index {
  unsigned x, y, z;
};
extern "C" {
extern Index threadIdx, blockIdx;
void block_barrier();
// Every lane of the warp leaves `size` bytes, and gets what all left, 64 bytes apart.
const unsigned char *warp_exchange(const void *own, unsigned size);
unsigned warp_lane();
// A copy is done when it is waited for, and rubbish until then.
void start_copy(void *to, const void *from, int size);
void commit_copies();
void finish_copies(unsigned pending);
}

template <class T> static T of_lane(const unsigned char *all, unsigned lane) {
  T value;
  memcpy(&value, all + lane * 64, sizeof(T));
  return value;
}
template <class T> static T shuffle_xor(T value, int lane) {
  return of_lane<T>(warp_exchange(&value, sizeof(T)), (warp_lane() ^ lane) & 31);
}
template <class T> static T shuffle_down(T value, int lane) {
  const unsigned char *all = warp_exchange(&value, sizeof(T));
  unsigned from = warp_lane() + lane;
  return from < 32 ? of_lane<T>(all, from) : value;
}
template <class T> static T shuffle(T value, int lane) {
  return of_lane<T>(warp_exchange(&value, sizeof(T)), lane & 31);
}
static inline void atomic_max(int *to, int value) {
  if (*to < value) *to = value; // fibers run until they wait
}
static inline int dot4_i8i8(int sum, int a, int b) {
  for (int i = 0; i < 4; i++) sum += (int8_t)(a >> 8 * i) * (int8_t)(b >> 8 * i);
  return sum;
}
static inline int dot4_u8i8(int sum, int a, int b) {
  for (int i = 0; i < 4; i++) sum += (uint8_t)(a >> 8 * i) * (int8_t)(b >> 8 * i);
  return sum;
}

template <class U> static void load_matrices(unsigned *to, U *from) {
  const unsigned char *rows = warp_exchange(&from, sizeof from);
  unsigned lane = warp_lane();
  for (unsigned i = 0; i < 4; i++)
    to[i] = of_lane<const unsigned *>(rows, 8 * i + lane / 4)[lane % 4];
}

template <class U> static void load_transposed(unsigned *to, U *from) {
  const unsigned char *rows = warp_exchange(&from, sizeof from);
  unsigned lane = warp_lane();
  for (unsigned i = 0; i < 4; i++) {
    uint16_t pair[2];
    for (unsigned k = 0; k < 2; k++)
      pair[k] = ((const uint16_t *)of_lane<const unsigned *>(rows, 8 * i + lane % 4 * 2 + k))[lane / 4];
    memcpy(&to[i], pair, 4);
  }
}
static inline float power2(float x) { return x < -126 ? 0 : exp2f(x); }
template <int behind, class T, class U> static void copy_async16(T *to, U *from, int size) {
  start_copy((void *)to, (const char *)from + behind, size);
}
static inline void wait_copies0() { finish_copies(0); }
static inline void wait_copies1() { finish_copies(1); }
static inline void wait_copies2() { finish_copies(2); }

static inline unsigned pack_f16(float low, float high) {
  half pair[2] = {(half)low, (half)high};
  unsigned made;
  memcpy(&made, pair, 4);
  return made;
}
static inline unsigned upper_half(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
static inline unsigned pack_bf16(float low, float high) {
  return upper_half(low) | upper_half(high) << 16;
}

template <class T> static float short_float(unsigned word, int i) {
  uint16_t bits = word >> 16 * i;
  T value;
  memcpy(&value, &bits, 2);
  return (float)value;
}
struct Upper { // bfloat16
  uint16_t bits;
  operator float() const {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
  }
};
template <class T> static int byte_of(unsigned word, int i) { return (T)(word >> 8 * i); }

// The product of matrices whose words are spread over a warp: see hardware/products.py, WarpMac.
template <class Sum, class F>
static void warp_product(Sum *c, const unsigned *a, const unsigned *b, F dot) {
  unsigned own[6] = {a[0], a[1], a[2], a[3], b[0], b[1]}, lane = warp_lane();
  struct Words { unsigned of[6]; };
  const unsigned char *all = warp_exchange(own, sizeof own);
  for (int i = 0; i < 4; i++) {
    Sum sum = c[i];
    for (unsigned word = 0; word < 8; word++) {
      Words left = of_lane<Words>(all, lane / 4 * 4 + word % 4);
      Words right = of_lane<Words>(all, (lane % 4 * 2 + i % 2) * 4 + word % 4);
      sum = dot(sum, left.of[word / 4 * 2 + i / 2], right.of[4 + word / 4]);
    }
    c[i] = sum;
  }
}
#define WARP_FLOATS(name, T)                                                                       \
  static inline void name(float *c, const unsigned *a, const unsigned *b) {                        \
    warp_product(c, a, b, [](float sum, unsigned x, unsigned y) {                                  \
      for (int i = 0; i < 2; i++) sum += short_float<T>(x, i) * short_float<T>(y, i);              \
      return sum;                                                                                  \
    });                                                                                            \
  }
WARP_FLOATS(warp_f16, half)
WARP_FLOATS(warp_bf16, Upper)
#define WARP_BYTES(name, T)                                                                        \
  static inline void name(int *c, const unsigned *a, const unsigned *b) {                          \
    warp_product(c, a, b, [](int sum, unsigned x, unsigned y) {                                    \
      for (int i = 0; i < 4; i++) sum += byte_of<T>(x, i) * byte_of<int8_t>(y, i);                 \
      return sum;                                                                                  \
    });                                                                                            \
  }
WARP_BYTES(warp_i8i8, int8_t)
WARP_BYTES(warp_u8i8, uint8_t)

extern "C" void misaligned(const void *address, unsigned size);
#define MOVE(size)                                                                                 \
  template <class T, class U> static void move##size(T *to, U *from) {                             \
    if ((uintptr_t)to % size || (uintptr_t)from % size) misaligned((uintptr_t)to % size ? (void *)to : (void *)from, size); \
    memcpy((void *)to, (const void *)from, size);                                                  \
  }
MOVE(1) MOVE(2) MOVE(4) MOVE(8) MOVE(16)
