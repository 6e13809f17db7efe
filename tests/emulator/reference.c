/* Random programs -> what they mean, written a second time from the SDM's pseudocode, for fuzz.py.
 * Plain loops over plain arrays; shares no code with emulator.c. Needs FMA. */
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <xmmintrin.h>

/* A tile program's step. `offset` and `stride` are bytes in the arena; `a` and `b` are tiles. */
enum { CONFIGURE, RELEASE, REPORT, ZERO, LOAD, STORE, UU, US, SU, SS, BF16 };
struct step {
    int64_t kind, tile, a, b, offset, stride;
};

static uint8_t palette, start_row, rows[8], data[8][16][64];
static uint16_t colsb[8];

static void configure(const uint8_t *memory) {
    memset(data, 0, sizeof data);
    palette = memory[0];
    start_row = memory[1];
    for (int t = 0; t < 8; t++) {
        colsb[t] = (uint16_t)(memory[16 + 2 * t] + 256 * memory[17 + 2 * t]);
        rows[t] = memory[48 + t];
    }
}

static void report(uint8_t *memory) {
    memset(memory, 0, 64);
    memory[0] = palette;
    memory[1] = start_row;
    for (int t = 0; t < 8; t++) {
        memory[16 + 2 * t] = (uint8_t)colsb[t];
        memory[48 + t] = rows[t];
    }
}

static int factor(uint8_t byte, int is_signed) {
    return is_signed && byte > 127 ? byte - 256 : byte;
}

static void integers(int c, int a, int b, int a_signed, int b_signed) {
    for (int m = 0; m < rows[c]; m++)
        for (int k = 0; k < colsb[a] / 4; k++)
            for (int n = 0; n < colsb[c] / 4; n++) {
                uint32_t sum;
                memcpy(&sum, &data[c][m][4 * n], 4);
                for (int i = 0; i < 4; i++)
                    sum += (uint32_t)(factor(data[a][m][4 * k + i], a_signed) *
                                      factor(data[b][k][4 * n + i], b_signed));
                memcpy(&data[c][m][4 * n], &sum, 4);
            }
}

static float bf16(const uint8_t *pair) {
    uint32_t bits = (uint32_t)pair[0] << 16 | (uint32_t)pair[1] << 24;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static __attribute__((noinline)) void floats(int c, int a, int b) {
    for (int m = 0; m < rows[c]; m++) {
        float temp[32] = {0};
        for (int k = 0; k < colsb[a] / 4; k++)
            for (int n = 0; n < colsb[c] / 4; n++)
                for (int i = 0; i < 2; i++)
                    temp[2 * n + i] = fmaf(bf16(&data[a][m][4 * k + 2 * i]),
                                           bf16(&data[b][k][4 * n + 2 * i]), temp[2 * n + i]);
        for (int n = 0; n < colsb[c] / 4; n++) {
            float sum;
            memcpy(&sum, &data[c][m][4 * n], 4);
            sum += temp[2 * n] + temp[2 * n + 1];
            memcpy(&data[c][m][4 * n], &sum, 4);
        }
    }
}

static void transfer(const struct step *s, uint8_t *arena) {
    for (int row = start_row; row < rows[s->tile]; row++)
        for (int i = 0; i < colsb[s->tile]; i++) {
            uint8_t *memory = arena + s->offset + row * s->stride + i,
                    *tile = &data[s->tile][row][i];
            if (s->kind == LOAD) *tile = *memory;
            else *memory = *tile;
        }
}

/* A tile program on `arena` -> the arena after it. */
void run_tiles(const struct step *steps, long count, uint8_t *arena) {
    unsigned control = _mm_getcsr();
    _mm_setcsr(0x9FC0); /* DAZ, FTZ, round to nearest even */
    for (const struct step *s = steps; s < steps + count; s++) {
        int c = (int)s->tile, a = (int)s->a, b = (int)s->b;
        if (s->kind == CONFIGURE) configure(arena + s->offset);
        else if (s->kind == RELEASE) configure((const uint8_t[64]){0});
        else if (s->kind == REPORT) report(arena + s->offset);
        else if (s->kind == ZERO) memset(data[c], 0, sizeof data[c]);
        else if (s->kind == LOAD || s->kind == STORE) transfer(s, arena);
        else if (s->kind == BF16) floats(c, a, b);
        else integers(c, a, b, s->kind == SU || s->kind == SS, s->kind == US || s->kind == SS);
        if (s->kind >= ZERO) start_row = 0;
    }
    _mm_setcsr(control);
}

static int64_t saturated(int64_t value, int64_t low, int64_t high) {
    return value < low ? low : value > high ? high : value;
}

/* One vector instruction on registers of 64 bytes: VPDP{kind}D, or VPDPWSSD when kind is -1.
 * `bytes` is 16 or 32. */
void run_vector(uint8_t registers[16][64], long kind, long saturate, long bytes, long c, long a,
                const uint8_t *b) {
    uint8_t result[64] = {0};
    for (int lane = 0; lane < bytes; lane += 4) {
        uint32_t old;
        int64_t sum;
        memcpy(&old, &registers[c][lane], 4);
        sum = kind == UU ? (int64_t)old : (int64_t)(int32_t)old;
        if (kind < 0) {
            int16_t left[2], right[2];
            memcpy(left, &registers[a][lane], 4);
            memcpy(right, b + lane, 4);
            sum += (int64_t)left[0] * right[0] + (int64_t)left[1] * right[1];
        } else {
            for (int i = 0; i < 4; i++)
                sum += factor(registers[a][lane + i], kind == SU || kind == SS) *
                       factor(b[lane + i], kind == US || kind == SS);
        }
        if (saturate)
            sum = kind == UU ? saturated(sum, 0, UINT32_MAX) : saturated(sum, INT32_MIN, INT32_MAX);
        old = (uint32_t)sum;
        memcpy(&result[lane], &old, 4);
    }
    memcpy(registers[c], result, 64);
}
