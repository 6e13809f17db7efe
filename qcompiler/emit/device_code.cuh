// What the code of kernels calls: arithmetic under the names of the CPU's instructions, and what
// the threads of a block do together. The tests define the second part for the CPU
// (QCOMPILER_ON_CPU), where they run kernels.
//
// Nothing may contract a product and a sum: compile with --fmad=false (g++: -ffp-contract=off).

#ifndef QCOMPILER_ON_CPU
typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fffffff)

struct alignas(16) Words4 { unsigned x, y, z, w; };
struct alignas(8) Words2 { unsigned x, y; };

static __device__ __forceinline__ void block_barrier() { __syncthreads(); }
template <class T> static __device__ __forceinline__ T shuffle_xor(T value, int lane) {
  return __shfl_xor_sync(0xffffffffu, value, lane);
}
template <class T> static __device__ __forceinline__ T shuffle_down(T value, int lane) {
  return __shfl_down_sync(0xffffffffu, value, lane);
}
template <class T> static __device__ __forceinline__ T shuffle(T value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}
static __device__ __forceinline__ void atomic_max(int *to, int value) { atomicMax(to, value); }
static __device__ __forceinline__ int dot4_i8i8(int sum, int a, int b) { return __dp4a(a, b, sum); }
static __device__ __forceinline__ int dot4_u8i8(int sum, int a, int b) {
  int made;
  asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(made) : "r"(a), "r"(b), "r"(sum));
  return made;
}
template <class U> static __device__ __forceinline__ void load_matrices(unsigned *to, U *from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"((unsigned)__cvta_generic_to_shared(from))
               : "memory");
}
template <class U>
static __device__ __forceinline__ void load_transposed(unsigned *to, U *from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"((unsigned)__cvta_generic_to_shared(from))
               : "memory");
}
static __device__ __forceinline__ float power2(float x) {
  float made;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(made) : "f"(x));
  return made;
}
#if __CUDA_ARCH__ >= 800
template <int behind, class T, class U>
static __device__ __forceinline__ void copy_async16(T *to, U *from, int size) {
  asm volatile("cp.async.cg.shared.global [%0], [%1 + %3], 16, %2;"
               :
               : "r"((unsigned)__cvta_generic_to_shared(to)), "l"(__cvta_generic_to_global(from)),
                 "r"(size), "n"(behind)
               : "memory");
}
static __device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
#define WAIT_COPIES(n)                                                                             \
  static __device__ __forceinline__ void wait_copies##n() {                                        \
    asm volatile("cp.async.wait_group " #n ";" ::: "memory");                                      \
  }
WAIT_COPIES(0) WAIT_COPIES(1) WAIT_COPIES(2)
#define PACK(name, words)                                                                          \
  static __device__ __forceinline__ unsigned name(float low, float high) {                         \
    unsigned made;                                                                                 \
    asm("cvt.rn." words ".f32 %0, %1, %2;" : "=r"(made) : "f"(high), "f"(low));                    \
    return made;                                                                                   \
  }
PACK(pack_f16, "f16x2")
PACK(pack_bf16, "bf16x2")
#define WARP_PRODUCT(name, words, T, letter)                                                       \
  static __device__ __forceinline__ void name(T *c, const unsigned *a, const unsigned *b) {        \
    asm volatile("mma.sync.aligned." words " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "       \
                 "{%0, %1, %2, %3};"                                                               \
                 : "+" letter(c[0]), "+" letter(c[1]), "+" letter(c[2]), "+" letter(c[3])          \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));              \
  }
WARP_PRODUCT(warp_f16, "m16n8k16.row.col.f32.f16.f16.f32", float, "f")
WARP_PRODUCT(warp_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32", float, "f")
WARP_PRODUCT(warp_i8i8, "m16n8k32.row.col.s32.s8.s8.s32", int, "r")
WARP_PRODUCT(warp_u8i8, "m16n8k32.row.col.s32.u8.s8.s32", int, "r")
#elif __CUDA_ARCH__ >= 750
// The same products by the smaller ones there are; a copy has come when it was started.
template <int behind, class T, class U>
static __device__ __forceinline__ void copy_async16(T *to, U *from, int size) {
  Words4 held = {0, 0, 0, 0};
  if (size) held = *(const Words4 *)((const char *)from + behind);
  *(Words4 *)to = held;
}
static __device__ __forceinline__ void commit_copies() {}
static __device__ __forceinline__ void wait_copies0() {}
static __device__ __forceinline__ void wait_copies1() {}
static __device__ __forceinline__ void wait_copies2() {}
static __device__ __forceinline__ unsigned pack_f16(float low, float high) {
  unsigned made;
  asm("{.reg .b16 a, b; cvt.rn.f16.f32 a, %1; cvt.rn.f16.f32 b, %2; mov.b32 %0, {a, b};}"
      : "=r"(made) : "f"(low), "f"(high));
  return made;
}
static __device__ __forceinline__ void warp_f16(float *c, const unsigned *a, const unsigned *b) {
  for (int k = 0; k < 2; k++)
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, "
                 "{%6}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[2 * k]), "r"(a[2 * k + 1]), "r"(b[k]));
}
#define WARP_BYTES(name, words)                                                                    \
  static __device__ __forceinline__ void name(int *c, const unsigned *a, const unsigned *b) {      \
    for (int part = 0; part < 4; part++)                                                           \
      asm volatile("mma.sync.aligned.m8n8k16.row.col." words " {%0, %1}, {%2}, {%3}, {%0, %1};"    \
                   : "+r"(c[part % 2 * 2]), "+r"(c[part % 2 * 2 + 1])                              \
                   : "r"(a[part]), "r"(b[part / 2]));                                              \
  }
WARP_BYTES(warp_i8i8, "s32.s8.s8.s32")
WARP_BYTES(warp_u8i8, "s32.u8.s8.s32")
#endif
template <class T, class U> static __device__ __forceinline__ void move16(T *to, U *from) {
  *(Words4 *)to = *(const Words4 *)from;
}
template <class T, class U> static __device__ __forceinline__ void move8(T *to, U *from) {
  *(Words2 *)to = *(const Words2 *)from;
}
template <class T, class U> static __device__ __forceinline__ void move4(T *to, U *from) {
  *(unsigned *)to = *(const unsigned *)from;
}
template <class T, class U> static __device__ __forceinline__ void move2(T *to, U *from) {
  *(unsigned short *)to = *(const unsigned short *)from;
}
template <class T, class U> static __device__ __forceinline__ void move1(T *to, U *from) {
  *(unsigned char *)to = *(const unsigned char *)from;
}
#endif

#define uchar unsigned char
#define ushort unsigned short
#define uint unsigned int
#define ulong unsigned long long
#define CUDART_INF_F INFINITY
#define CUDART_NAN_F NAN
#define CUDART_INF ((double)INFINITY)
#define CUDART_NAN ((double)NAN)

#define DEVICE static __device__ __forceinline__
#define OF_FLOATS(name, single, twice)                                                             \
  DEVICE float name(float x) { return single(x); }                                                 \
  DEVICE double name(double x) { return twice(x); }

OF_FLOATS(math_fabs, fabsf, fabs)
OF_FLOATS(math_floor, floorf, floor)
OF_FLOATS(math_ceil, ceilf, ceil)
OF_FLOATS(math_trunc, truncf, trunc)
OF_FLOATS(math_nearbyint, rintf, rint)
OF_FLOATS(math_sqrt, sqrtf, sqrt)
DEVICE float math_copysign(float x, float y) { return copysignf(x, y); }
DEVICE double math_copysign(double x, double y) { return copysign(x, y); }
DEVICE float math_fma(float x, float y, float z) { return fmaf(x, y, z); }
DEVICE double math_fma(double x, double y, double z) { return fma(x, y, z); }
template <class T> DEVICE T math_arithmetic_fence(T x) { return x; }
template <class T> DEVICE T math_umax(T x, T y) { return x > y ? x : y; }
// TVM's own, where the second operand is taken if either is NaN.
template <class T> DEVICE T math_max(T x, T y) { return x > y ? x : y; }
template <class T> DEVICE T math_min(T x, T y) { return x < y ? x : y; }
#define max math_max
#define min math_min
template <class T, class U> DEVICE T bits_as(U x) {
  static_assert(sizeof(T) == sizeof(U), "as many bits");
  T made;
  memcpy(&made, &x, sizeof(T));
  return made;
}
struct Address { // of elements of any kind
  const volatile void *at;
  template <class T> __device__ __forceinline__ operator T *() const { return (T *)at; }
};
// The same number or address, computed here and kept: nothing is known of how.
DEVICE int again_index(int value) {
  asm volatile("" : "+r"(value));
  return value;
}
template <class T> DEVICE Address again_pointer(T *pointer) {
#ifdef QCOMPILER_ON_CPU
  asm volatile("" : "+r"(pointer));
#else
  asm volatile("" : "+l"(pointer));
#endif
  return {(const volatile void *)pointer};
}
template <class T, class U> DEVICE Address either_pointer(int first, T *one, U *other) {
  return {first ? (const volatile void *)one : (const volatile void *)other};
}

// Integers wrap around: signed ones by way of unsigned.
#define WRAPPING(name, sign)                                                                       \
  DEVICE int name##_i32x1(int a, int b) { return (int)((unsigned)a sign(unsigned) b); }            \
  DEVICE unsigned name##_i32x1(unsigned a, unsigned b) { return a sign b; }                        \
  DEVICE int64_t name##_i64x1(int64_t a, int64_t b) {                                              \
    return (int64_t)((uint64_t)a sign(uint64_t) b);                                                \
  }                                                                                                \
  DEVICE uint64_t name##_i64x1(uint64_t a, uint64_t b) { return a sign b; }
WRAPPING(wrapping_add, +)
WRAPPING(wrapping_sub, -)
WRAPPING(wrapping_mul, *)
