/* SIGILL at an AMX or AVX-VNNI instruction -> its effect on memory, registers and tiles, and on.
 * A process's request for tile registers -> granted, or refused with a chosen error.
 *
 * Lets machine code for CPUs we do not have run, slowly but exactly, on the CPU we have: the CPU
 * refuses the instruction, Linux delivers SIGILL, the handler decodes and performs it. Everything
 * else that is illegal (also a wrong tile shape) goes to the handler that was there before, so it
 * still kills the process.
 *
 * Sources: Intel 64 and IA-32 Architectures Software Developer's Manual (SDM): volume 2 chapter 2.3
 * (VEX), 2.1.5 (ModRM and SIB), the pages of the instructions; volume 1 chapter 13.4 (XSAVE area)
 * and 18 (AMX). AVX-VNNI-INT8: Intel Architecture Instruction Set Extensions Programming Reference.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>
#include <xmmintrin.h>

enum { NP, P66, PF3, PF2 }; /* VEX.pp: the prefix that the VEX byte replaces */
enum { TILES = 8, ROWS = 16, ROW_BYTES = 64, LANES = 16 };
enum { AVX_STATE = 1 << 2, ZMM_HI256_STATE = 1 << 6 }; /* bits of XCR0 and XSTATE_BV, SDM 1-13.1 */
enum { MXCSR_DAZ_FTZ_RNE = 0x9FC0 }; /* denormals are zero, all exceptions masked */

/* SDM 1-18.3, the 64 bytes of LDTILECFG. */
struct tile_config {
    uint8_t palette, start_row, reserved0[14];
    uint16_t row_bytes[TILES];
    uint8_t reserved1[16], rows[TILES], reserved2[8];
};

typedef union {
    uint8_t bytes[ROWS][ROW_BYTES];
    uint32_t dwords[ROWS][LANES];
    float floats[ROWS][LANES];
} tile;

/* What TILECFG and TILEDATA are to a core. Bytes outside a tile's configured shape are always zero.
 * The first touch in a thread may allocate; that is safe here, SIGILL is synchronous. */
static __thread struct tile_config config;
static __thread tile tiles[TILES];

struct instruction {
    unsigned pp, opcode, reg, vvvv;
    bool l256, memory, sib;
    unsigned rm;    /* register operand, when not memory */
    uint8_t *base;  /* memory operand: base + displacement */
    uint64_t index; /* memory operand: index * scale; the row stride of tile loads and stores */
    uint64_t next;  /* RIP of the following instruction */
};

static struct sigaction previous;
static unsigned zmm_high_offset;
static unsigned long emulated;

/* Told of tile loads, stores and products as they are performed: the opcode (0x4B: load or store),
 * the rows and bytes a row of the tile that is read or written (of a product: the sums), and the
 * place in memory (of a product: NULL). */
typedef void observer(unsigned opcode, bool store, unsigned rows, unsigned row_bytes,
                      const uint8_t *base, uint64_t stride);
static observer *observed;

/* ---- Decoding -------------------------------------------------------------------------------- */

static uint64_t general_register(const ucontext_t *context, unsigned number) {
    static const uint8_t place[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                      REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                      REG_R12, REG_R13, REG_R14, REG_R15};
    return (uint64_t)context->uc_mcontext.gregs[place[number]];
}

/* Code from ModRM on -> the memory operand and the end of the instruction. SDM 2-2.1.5, tables 2-2
 * and 2-3. `x` and `b` are the bit 8 that VEX.X and VEX.B add to the index's and base's number. */
static void decode_memory(struct instruction *in, const uint8_t *code, unsigned x, unsigned b,
                          const ucontext_t *context) {
    unsigned mod = code[0] >> 6, base = code[0] & 7;
    int32_t displacement = 0;
    uint64_t address = 0;
    code++;
    in->memory = true;
    if (base == 4) {
        unsigned scale = *code >> 6, index = (*code >> 3 & 7) | x;
        in->sib = true;
        if (index != 4) in->index = general_register(context, index) << scale;
        base = *code++ & 7;
    }
    bool no_base = mod == 0 && base == 5; /* with SIB: disp32 alone; without: relative to RIP */
    if (mod == 1) {
        displacement = (int8_t)*code++;
    } else if (mod == 2 || no_base) {
        memcpy(&displacement, code, 4);
        code += 4;
    }
    in->next = (uint64_t)(uintptr_t)code; /* none of our instructions has an immediate */
    if (!no_base) address = general_register(context, base | b);
    else if (!in->sib) address = in->next;
    in->base = (uint8_t *)(uintptr_t)(address + (uint64_t)(int64_t)displacement);
}

/* RIP -> one VEX.0F38.W0 instruction, or false. SDM 2-2.3.5: C4, then the bits R X B mmmmm, then
 * W vvvv L pp, with R, X, B and vvvv inverted. */
static bool decode(struct instruction *in, const ucontext_t *context) {
    const uint8_t *code = (const uint8_t *)(uintptr_t)context->uc_mcontext.gregs[REG_RIP];
    memset(in, 0, sizeof *in);
    if (code[0] != 0xC4 || (code[1] & 0x1F) != 2 || code[2] & 0x80) return false;
    unsigned r = code[1] & 0x80 ? 0 : 8, x = code[1] & 0x40 ? 0 : 8, b = code[1] & 0x20 ? 0 : 8;
    in->vvvv = ~(code[2] >> 3) & 15;
    in->l256 = code[2] & 4;
    in->pp = code[2] & 3;
    in->opcode = code[3];
    in->reg = (code[4] >> 3 & 7) | r;
    in->rm = (code[4] & 7) | b;
    in->next = (uint64_t)(uintptr_t)(code + 5);
    if (code[4] >> 6 != 3) decode_memory(in, code + 4, x, b, context);
    return true;
}

/* ---- AMX ------------------------------------------------------------------------------------- */

static bool all_zero(const uint8_t *bytes, unsigned count) {
    while (count--)
        if (*bytes++) return false;
    return true;
}

/* A configured tile of whole dwords, else #UD: SDM 2-2.10, exception classes AMX-E3 to AMX-E5. */
static bool valid(unsigned t) {
    return t < TILES && config.palette == 1 && config.rows[t] != 0 && config.row_bytes[t] % 4 == 0;
}

static void release(void) {
    memset(&config, 0, sizeof config);
    memset(tiles, 0, sizeof tiles);
}

/* SDM 2, LDTILECFG. A real CPU answers a bad one with #GP, which Linux delivers as SIGSEGV. */
static bool load_config(const uint8_t *memory) {
    struct tile_config new;
    memcpy(&new, memory, sizeof new);
    if (new.palette > 1) return false;
    if (new.palette == 1) {
        if (!all_zero(new.reserved0, sizeof new.reserved0)) return false;
        if (!all_zero(new.reserved1, sizeof new.reserved1)) return false;
        if (!all_zero(new.reserved2, sizeof new.reserved2)) return false;
        for (unsigned t = 0; t < TILES; t++) {
            bool half_empty = (new.rows[t] == 0) != (new.row_bytes[t] == 0);
            if (half_empty || new.rows[t] > ROWS || new.row_bytes[t] > ROW_BYTES) return false;
        }
    }
    release();
    if (new.palette == 1) config = new;
    return true;
}

static void observe(const struct instruction *in, bool store, unsigned t) {
    if (observed)
        observed(in->opcode, store, config.rows[t], config.row_bytes[t], in->base, in->index);
}

/* SDM 2, TILELOADD: rows before start_row are kept, all others are replaced. */
static bool tile_load(const struct instruction *in) {
    if (!in->sib || !valid(in->reg) || config.start_row >= config.rows[in->reg]) return false;
    observe(in, false, in->reg);
    for (unsigned row = config.start_row; row < config.rows[in->reg]; row++)
        memcpy(tiles[in->reg].bytes[row], in->base + row * in->index, config.row_bytes[in->reg]);
    config.start_row = 0;
    return true;
}

/* SDM 2, TILESTORED. */
static bool tile_store(const struct instruction *in) {
    if (!in->sib || !valid(in->reg) || config.start_row >= config.rows[in->reg]) return false;
    observe(in, true, in->reg);
    for (unsigned row = config.start_row; row < config.rows[in->reg]; row++)
        memcpy(in->base + row * in->index, tiles[in->reg].bytes[row], config.row_bytes[in->reg]);
    config.start_row = 0;
    return true;
}

/* c[m x n] += a[m x k] * b[k x n], in dwords: three different tiles that fit, else #UD. SDM 2-2.10,
 * exception class AMX-E4. */
static bool fitting(unsigned c, unsigned a, unsigned b) {
    return valid(c) && valid(a) && valid(b) && c != a && c != b && a != b &&
           config.rows[c] == config.rows[a] && config.row_bytes[c] == config.row_bytes[b] &&
           config.row_bytes[a] / 4 == config.rows[b];
}

/* SDM 2, TDPBSSD: one row of c. `b` holds column n's k-th byte at [k][n]. Sums wrap. */
static void integer_row(uint32_t c[LANES], const int16_t a[ROW_BYTES], int16_t b[][LANES],
                        unsigned count) {
    for (unsigned k = 0; k < count; k++)
        for (unsigned n = 0; n < LANES; n++) c[n] += (uint32_t)((int32_t)a[k] * b[k][n]);
}

static int16_t widen(uint8_t byte, bool is_signed) { return is_signed ? (int8_t)byte : byte; }

static void tile_integer_product(tile *c, const tile *a, const tile *b, unsigned rows,
                                 unsigned depth, unsigned pp) {
    int16_t left[ROW_BYTES], right[ROW_BYTES][LANES];
    bool a_signed = pp >> 1, b_signed = pp & 1; /* NP: u*u, 66: u*s, F3: s*u, F2: s*s */
    for (unsigned k = 0; k < 4 * depth; k++)
        for (unsigned n = 0; n < LANES; n++)
            right[k][n] = widen(b->bytes[k / 4][4 * n + k % 4], b_signed);
    for (unsigned m = 0; m < rows; m++) {
        for (unsigned k = 0; k < 4 * depth; k++) left[k] = widen(a->bytes[m][k], a_signed);
        integer_row(c->dwords[m], left, right, 4 * depth);
    }
}

/* SDM 2, TDPBF16PS: even and odd pairs in sums of their own from zero, each step one FMA with
 * denormals flushed and round to nearest even; then even + odd; then added to c. Bit-exact to that
 * text, but for the payload of NaNs: a float32 FMA is computed as round(double(a) * b + c). The
 * product (16 bits) is exact, and double has more than 2 * 24 + 1 bits, so rounding the sum twice
 * is rounding it once (Figueroa, 1995). The signal frame keeps the MXCSR of the interrupted code.
 */
static void tile_bf16_product(tile *c, const tile *a, const tile *b, unsigned rows,
                              unsigned depth) {
    _mm_setcsr(MXCSR_DAZ_FTZ_RNE);
    for (unsigned m = 0; m < rows; m++) {
        float even[LANES] = {0}, odd[LANES] = {0};
        for (unsigned k = 0; k < depth; k++) {
            uint32_t left = a->dwords[m][k], left_low = left << 16, left_high = left & 0xFFFF0000;
            float a_even, a_odd, b_even, b_odd;
            memcpy(&a_even, &left_low, 4);
            memcpy(&a_odd, &left_high, 4);
            for (unsigned n = 0; n < LANES; n++) {
                uint32_t right = b->dwords[k][n];
                uint32_t right_low = right << 16, right_high = right & 0xFFFF0000;
                memcpy(&b_even, &right_low, 4);
                memcpy(&b_odd, &right_high, 4);
                even[n] = (float)((double)a_even * b_even + even[n]);
                odd[n] = (float)((double)a_odd * b_odd + odd[n]);
            }
        }
        for (unsigned n = 0; n < LANES; n++) c->floats[m][n] += even[n] + odd[n];
    }
}

static bool tile_product(const struct instruction *in) {
    unsigned c = in->reg, a = in->rm, b = in->vvvv;
    if (in->memory || !fitting(c, a, b)) return false;
    unsigned rows = config.rows[c], depth = config.rows[b];
    observe(in, false, c);
    if (in->opcode == 0x5C) tile_bf16_product(&tiles[c], &tiles[a], &tiles[b], rows, depth);
    else tile_integer_product(&tiles[c], &tiles[a], &tiles[b], rows, depth, in->pp);
    config.start_row = 0;
    return true;
}

/* Opcode 49: LDTILECFG, STTILECFG, TILERELEASE, TILEZERO. */
static bool tile_control(const struct instruction *in) {
    uint8_t *memory = in->base + in->index;
    if (in->memory && in->reg == 0 && in->pp == NP) return load_config(memory);
    if (in->memory && in->reg == 0 && in->pp == P66) {
        memcpy(memory, &config, sizeof config);
    } else if (!in->memory && in->reg == 0 && in->rm == 0 && in->pp == NP) {
        release();
    } else if (!in->memory && in->rm == 0 && in->pp == PF2 && valid(in->reg)) {
        memset(&tiles[in->reg], 0, sizeof(tile));
        config.start_row = 0;
    } else {
        return false;
    }
    return true;
}

/* ---- AVX-VNNI and AVX-VNNI-INT8 -------------------------------------------------------------- */

/* The signal frame's XSAVE area, or NULL when the kernel saved no AVX state. */
static struct _xstate *saved_vectors(const ucontext_t *context) {
    struct _xstate *state = (struct _xstate *)context->uc_mcontext.fpregs;
    struct _fpx_sw_bytes software;
    memcpy(&software, (const uint8_t *)state + 464, sizeof software); /* asm/sigcontext.h */
    return software.magic1 == FP_XSTATE_MAGIC1 && software.xstate_bv & AVX_STATE ? state : NULL;
}

static void read_vector(uint32_t lanes[8], const struct _xstate *state, unsigned number) {
    memset(lanes, 0, 32); /* without AVX_STATE the upper half is zero, whatever the frame holds */
    memcpy(lanes, &state->fpstate._xmm[number], 16);
    if (state->xstate_hdr.xstate_bv & AVX_STATE)
        memcpy(lanes + 4, &state->ymmh.ymmh_space[4 * number], 16);
}

/* Writes ymm and zeroes the rest of zmm, as VEX does (SDM 2-2.3.10). Without AVX_STATE all upper
 * halves are zero, hence their products and sums too: nothing to write. */
static void write_vector(struct _xstate *state, unsigned number, const uint32_t lanes[8]) {
    uint64_t present = state->xstate_hdr.xstate_bv;
    memcpy(&state->fpstate._xmm[number], lanes, 16);
    if (present & AVX_STATE) memcpy(&state->ymmh.ymmh_space[4 * number], lanes + 4, 16);
    if (present & ZMM_HI256_STATE) memset((uint8_t *)state + zmm_high_offset + 32 * number, 0, 32);
}

static uint32_t clamp(int64_t value, int64_t low, int64_t high) {
    return (uint32_t)(value < low ? low : value > high ? high : value);
}

/* One dword of VPDPB??D[S] (opcode 50, 51) or VPDPWSSD[S] (52, 53). Odd opcodes saturate; the sum
 * saturates as unsigned when both factors are. */
static uint32_t dot(uint32_t sum, uint32_t a, uint32_t b, unsigned opcode, unsigned pp) {
    bool a_signed = pp >> 1, b_signed = pp & 1, both_unsigned = pp == NP;
    int64_t exact = both_unsigned ? (int64_t)sum : (int64_t)(int32_t)sum;
    if (opcode >= 0x52) {
        for (unsigned i = 0; i < 32; i += 16)
            exact += (int32_t)(int16_t)(a >> i) * (int16_t)(b >> i);
    } else {
        for (unsigned i = 0; i < 32; i += 8)
            exact += widen((uint8_t)(a >> i), a_signed) * widen((uint8_t)(b >> i), b_signed);
    }
    if (!(opcode & 1)) return (uint32_t)exact;
    return both_unsigned ? clamp(exact, 0, UINT32_MAX) : clamp(exact, INT32_MIN, INT32_MAX);
}

static bool vector_product(const struct instruction *in, const ucontext_t *context) {
    struct _xstate *state = saved_vectors(context);
    uint32_t a[8], b[8], old[8], new[8] = {0};
    unsigned lanes = in->l256 ? 8 : 4;
    if (!state || (in->opcode >= 0x52 && in->pp != P66)) return false;
    read_vector(old, state, in->reg);
    read_vector(a, state, in->vvvv);
    if (in->memory) memcpy(b, in->base + in->index, 4 * lanes);
    else read_vector(b, state, in->rm);
    for (unsigned i = 0; i < lanes; i++) new[i] = dot(old[i], a[i], b[i], in->opcode, in->pp);
    write_vector(state, in->reg, new);
    return true;
}

/* ---- The signal ------------------------------------------------------------------------------ */

static bool perform(const struct instruction *in, const ucontext_t *context) {
    if (in->opcode >= 0x50 && in->opcode <= 0x53) return vector_product(in, context);
    if (in->l256) return false; /* tiles: VEX.128 only */
    if (in->opcode == 0x5E || (in->opcode == 0x5C && in->pp == PF3)) return tile_product(in);
    if (in->vvvv != 0) return false; /* no second source: must be 1111b */
    if (in->opcode == 0x49) return tile_control(in);
    if (in->opcode == 0x4B && in->pp == PF3) return tile_store(in);
    return in->opcode == 0x4B && in->pp != NP && tile_load(in); /* 66: TILELOADDT1, F2: TILELOADD */
}

static void on_sigill(int number, siginfo_t *info, void *frame) {
    ucontext_t *context = frame;
    struct instruction in;
    bool from_cpu = info->si_code > 0; /* not raise() or kill() */
    unsigned done = 0;
    /* A signal costs more than an instruction: go on while the next one is ours too. */
    while (from_cpu && decode(&in, context) && perform(&in, context)) {
        context->uc_mcontext.gregs[REG_RIP] = (greg_t)in.next;
        done++;
    }
    __atomic_fetch_add(&emulated, done, __ATOMIC_RELAXED);
    if (done) return;
    sigaction(SIGILL, &previous, NULL); /* the instruction faults again, into that handler now */
    if (!from_cpu) raise(number);
}

static bool installed(void) {
    struct sigaction current;
    sigaction(SIGILL, NULL, &current);
    return current.sa_flags & SA_SIGINFO && current.sa_sigaction == on_sigill;
}

/* Puts our handler before the one that is there, if not ours. -> 0, or -1 with errno. */
int emulator_install(void) {
    struct sigaction ours = {.sa_sigaction = on_sigill, .sa_flags = SA_SIGINFO | SA_NODEFER};
    unsigned size, ecx, edx;
    if (installed()) return 0;
    __cpuid_count(0xD, 6, size, zmm_high_offset, ecx, edx); /* SDM 1-13.4.2 */
    return sigaction(SIGILL, &ours, &previous);
}

/* Puts the previous handler back, if ours is there. -> 0, or -1 with errno. */
int emulator_remove(void) { return installed() ? sigaction(SIGILL, &previous, NULL) : 0; }

/* From now on arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA), of all threads and of what they
 * execute, is not made and returns `error` (0: success); the last answer counts. A filter of system
 * calls, as sandboxes have: man 2 seccomp. -> 0, or -1 with errno. */
int emulator_answer(unsigned error) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define UNLESS(value, skipped) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, skipped)
    struct sock_filter filter[] = {
        LOAD(arch),    UNLESS(AUDIT_ARCH_X86_64, 7),
        LOAD(nr),      UNLESS(SYS_arch_prctl, 5),
        LOAD(args[0]), UNLESS(ARCH_REQ_XCOMP_PERM, 3),
        LOAD(args[1]), UNLESS(XFEATURE_XTILEDATA, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (error & SECCOMP_RET_DATA)),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return -1;
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) ? -1 : 0;
}

/* NULL: nobody is told any more. */
void emulator_observe(observer *told) { observed = told; }

/* How many instructions were emulated so far, in all threads. */
unsigned long emulator_count(void) { return __atomic_load_n(&emulated, __ATOMIC_RELAXED); }
