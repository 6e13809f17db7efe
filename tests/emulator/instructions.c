/* Arguments -> results by one instruction or a few, through gcc's intrinsics: real encodings. */
#define _GNU_SOURCE
#include <immintrin.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>

/* C += A * B in the tiles c, a and b. Each of the eight tiles takes each of the three places. */
#define PRODUCT(name, c, a, b)                                                                   \
    __attribute__((target("amx-tile,amx-int8,amx-bf16"))) void name##_##c(                       \
        const void *config, void *C, long c_stride, const void *A, long a_stride, const void *B, \
        long b_stride) {                                                                         \
        _tile_loadconfig(config);                                                                \
        _tile_loadd(c, C, c_stride);                                                             \
        _tile_stream_loadd(a, A, a_stride);                                                      \
        _tile_loadd(b, B, b_stride);                                                             \
        _tile_##name(c, a, b);                                                                   \
        _tile_stored(c, C, c_stride);                                                            \
        _tile_release();                                                                         \
    }
#define PRODUCTS(name)                                                                          \
    PRODUCT(name, 0, 1, 2) PRODUCT(name, 1, 2, 3) PRODUCT(name, 2, 3, 4) PRODUCT(name, 3, 4, 5) \
    PRODUCT(name, 4, 5, 6) PRODUCT(name, 5, 6, 7) PRODUCT(name, 6, 7, 0) PRODUCT(name, 7, 0, 1)
PRODUCTS(dpbusd)
PRODUCTS(dpbssd)
PRODUCTS(dpbsud)
PRODUCTS(dpbuud)
PRODUCTS(dpbf16ps)

#define TILE __attribute__((target("amx-tile,amx-int8")))

/* The configuration that the CPU reports after loading `config`, and after releasing it. */
TILE void configurations(const void *config, void *loaded, void *released) {
    _tile_loadconfig(config);
    _tile_storeconfig(loaded);
    _tile_release();
    _tile_storeconfig(released);
}

/* Tile 3 is loaded, zeroed and stored to `out`; tile 5 is only loaded and stored to `kept`. */
TILE void zero(const void *config, const void *in, void *out, void *kept, long stride) {
    _tile_loadconfig(config);
    _tile_loadd(3, in, stride);
    _tile_loadd(5, in, stride);
    _tile_zero(3);
    _tile_stored(3, out, stride);
    _tile_stored(5, kept, stride);
    _tile_release();
}

/* What the CPU must refuse, depending on `config`. */
TILE void load_config(const void *config) { _tile_loadconfig(config); }
TILE void load_tile(const void *config) {
    uint8_t memory[16 * 64];
    _tile_loadconfig(config);
    _tile_loadd(6, memory, 64);
}
TILE void multiply(const void *config) {
    _tile_loadconfig(config);
    _tile_dpbssd(0, 1, 2);
}
TILE void multiply_by_itself(const void *config) {
    _tile_loadconfig(config);
    /* tdpbssd tmm0, tmm1, tmm1, which assemblers refuse */
    __asm__ volatile(".byte 0xc4, 0xe2, 0x73, 0x5e, 0xc1");
}
TILE void store_released(const void *config) {
    uint8_t memory[16 * 64];
    _tile_loadconfig(config);
    _tile_release();
    _tile_stored(0, memory, 64);
}
void undefined(const void *config) {
    (void)config;
    __asm__ volatile("ud2");
}
void undefined_vex(const void *config) {
    (void)config;
    /* VEX.128.NP.0F38.W0 55: no such instruction */
    __asm__ volatile(".byte 0xc4, 0xe2, 0x78, 0x55, 0xc0");
}

/* -> whether `run(config)` dies of SIGILL, or of SIGSEGV, as a bad tile configuration does on a CPU
 * with AMX (#GP). `install` and `remove` are the emulator's: our own handler goes below it. */
static sigjmp_buf escape;
static void caught(int number) { siglongjmp(escape, number); }
int refused(void (*run)(const void *), const void *config, int (*install)(void),
            int (*remove)(void)) {
    struct sigaction ours = {.sa_handler = caught, .sa_flags = SA_NODEFER}, illegal, segment;
    remove();
    sigaction(SIGILL, &ours, &illegal);
    sigaction(SIGSEGV, &ours, &segment);
    install();
    int number = sigsetjmp(escape, 1);
    if (number == 0) run(config);
    sigaction(SIGILL, &illegal, NULL);
    sigaction(SIGSEGV, &segment, NULL);
    install();
    return number != 0;
}

/* sums[i] = dot(sums[i], a[i], b[i]) over n vectors. */
#define DOT(name, type, load, store, intrinsic)                                                    \
    __attribute__((target("avxvnni,avx2"))) void name(int32_t *sums, const void *a, const void *b, \
                                                      long n) {                                    \
        for (long i = 0; i < n; i++) {                                                             \
            type *sum = (type *)sums + i, right = load((const type *)b + i);                       \
            store(sum, intrinsic(load(sum), load((const type *)a + i), right));                    \
        }                                                                                          \
    }
#define DOTS(name)                                                                      \
    DOT(name##_128, __m128i, _mm_loadu_si128, _mm_storeu_si128, _mm_##name##_avx_epi32) \
    DOT(name##_256, __m256i, _mm256_loadu_si256, _mm256_storeu_si256, _mm256_##name##_avx_epi32)
DOTS(dpbusd)
DOTS(dpbusds)
DOTS(dpwssd)
DOTS(dpwssds)

/* ymm0 = dot(ymm0, ymm1, ymm2) in bytes: AVX-VNNI-INT8 is newer than many assemblers. `third` is
 * the byte W vvvv L pp. */
#define DOT_BYTES(name, third, opcode)                                                        \
    __attribute__((target("avx2"))) void name(void *sums, const void *a, const void *b) {     \
        __asm__ volatile("vmovdqu (%0), %%ymm0; vmovdqu (%1), %%ymm1; vmovdqu (%2), %%ymm2; " \
                         ".byte 0xc4, 0xe2, " #third ", " #opcode ", 0xc2; "                  \
                         "vmovdqu %%ymm0, (%0)"                                               \
                         :                                                                    \
                         : "r"(sums), "r"(a), "r"(b)                                          \
                         : "xmm0", "xmm1", "xmm2", "memory");                                 \
    }
DOT_BYTES(dpbssd, 0x77, 0x50)
DOT_BYTES(dpbssds, 0x77, 0x51)
DOT_BYTES(dpbsud, 0x76, 0x50)
DOT_BYTES(dpbsuds, 0x76, 0x51)
DOT_BYTES(dpbuud, 0x74, 0x50)
DOT_BYTES(dpbuuds, 0x74, 0x51)
