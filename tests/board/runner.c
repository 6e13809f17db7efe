/* A shared library and a list of orders -> what its functions leave in memory. For any Linux.
 *
 *   runner library orders answers
 *
 * The library is mapped by hand, so that a program that is linked statically, and needs no other file
 * of the emulated machine, can run it; it may ask for the functions listed below and no others. Every
 * piece of memory that is ordered ends right where a page begins that may not be touched.
 *
 * An order is a word that says what, then its operands, all of 8 bytes:
 *   1 size                      memory of so many bytes; it gets the next number
 *   2 memory offset size ...    write bytes, which follow, filled up to a multiple of 8
 *   3 memory offset size byte   fill
 *   4 memory offset memory at   write an address
 *   5 memory offset size        answer with what is there
 *   6 name count memory...      call a function; the name is 32 bytes, offsets follow each memory; memory -1 is a
 *                               plain number, its offset
 *   7 name number memory offset call a function of memory and a number in a thread of its own
 *   8 name memory offset memory offset number      call a function of two pointers and a number
 */
#define _GNU_SOURCE
#include <elf.h>
#include <link.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MOST 4096
#define OPERANDS 16
#define P4 void *, void *, void *, void *
#define F(name) {#name, (void *)name}

typedef double (*one_t)(double);
typedef double (*two_t)(double, double);
#define ONE(name) {#name, (void *)(one_t)name}
#define TWO(name) {#name, (void *)(two_t)name}

#if defined __arm__ /* of the compiler's own library, libgcc_s */
#define HELPERS                                                                                                 \
    H(__aeabi_d2lz) H(__aeabi_d2ulz) H(__aeabi_f2lz) H(__aeabi_f2ulz) H(__aeabi_l2d) H(__aeabi_l2f)             \
    H(__aeabi_ul2d) H(__aeabi_ul2f) H(__aeabi_ldivmod) H(__aeabi_uldivmod) H(__aeabi_lmul)
#define H(name) void name(void);
HELPERS
#undef H
#define H(name) F(name),
#else
#define HELPERS
#endif

static const struct {
    const char *name;
    void *address;
} given[] = {
    F(memcpy), F(memmove), F(memset), F(sched_yield), F(sem_init), F(sem_wait), F(sem_post), F(syscall),
    ONE(exp), ONE(log), ONE(sin), ONE(cos), ONE(tan), ONE(asin), ONE(acos), ONE(atan), ONE(sinh), ONE(cosh),
    ONE(tanh), ONE(asinh), ONE(acosh), ONE(atanh), ONE(erf), ONE(floor), ONE(ceil), ONE(trunc), TWO(pow), TWO(fmod),
    F(nearbyintf), F(floorf), F(ceilf), F(truncf), F(fmaf), F(fmodf), F(powf), ONE(nearbyint), HELPERS
};

static void fail(const char *what, const char *which) {
    fprintf(stderr, "runner: %s %s\n", what, which);
    exit(3);
}

static char *contents(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    if (!file) fail("cannot open", path);
    fseek(file, 0, SEEK_END);
    *size = ftell(file);
    rewind(file);
    char *bytes = malloc(*size + 1);
    if (fread(bytes, 1, *size, file) != *size) fail("cannot read", path);
    fclose(file);
    return bytes;
}

#if defined __aarch64__
enum { RELATIVE = R_AARCH64_RELATIVE, ABSOLUTE = R_AARCH64_ABS64, DATA = R_AARCH64_GLOB_DAT, JUMP = R_AARCH64_JUMP_SLOT };
#elif defined __arm__
enum { RELATIVE = R_ARM_RELATIVE, ABSOLUTE = R_ARM_ABS32, DATA = R_ARM_GLOB_DAT, JUMP = R_ARM_JUMP_SLOT };
#elif defined __riscv
enum { RELATIVE = R_RISCV_RELATIVE, ABSOLUTE = R_RISCV_64, DATA = R_RISCV_64, JUMP = R_RISCV_JUMP_SLOT };
#endif
#if UINTPTR_MAX == UINT32_MAX
#define R_SYMBOL ELF32_R_SYM
#define R_TYPE ELF32_R_TYPE
#else
#define R_SYMBOL ELF64_R_SYM
#define R_TYPE ELF64_R_TYPE
#endif

static char *base;
static ElfW(Sym) *symbols;
static const char *names;
static size_t symbol_count;

static void *defined(const char *name) {
    for (size_t i = 0; i < symbol_count; i++)
        if (symbols[i].st_shndx != SHN_UNDEF && !strcmp(names + symbols[i].st_name, name)) return base + symbols[i].st_value;
    return NULL;
}

static uintptr_t address_of(const ElfW(Sym) *symbol) {
    const char *name = names + symbol->st_name;
    void *found = symbol->st_shndx != SHN_UNDEF ? base + symbol->st_value : defined(name);
    for (size_t i = 0; !found && i < sizeof given / sizeof *given; i++)
        if (!strcmp(given[i].name, name)) found = given[i].address;
    if (!found && symbol->st_info >> 4 != STB_WEAK) fail("the library asks for", name);
    return (uintptr_t)found;
}

static void relocate(const char *entries, size_t size, int has_addend) {
    size_t step = has_addend ? sizeof(ElfW(Rela)) : sizeof(ElfW(Rel));
    for (size_t at = 0; at < size; at += step) {
        const ElfW(Rela) *r = (const void *)(entries + at);
        uintptr_t *place = (uintptr_t *)(base + r->r_offset);
        uintptr_t addend = has_addend ? (uintptr_t)r->r_addend : *place;
        const ElfW(Sym) *symbol = symbols + R_SYMBOL(r->r_info);
        unsigned type = R_TYPE(r->r_info);
        if (type == RELATIVE) *place = (uintptr_t)base + addend;
        else if (type == JUMP) *place = address_of(symbol);
        else if (type == DATA || type == ABSOLUTE) *place = address_of(symbol) + addend;
        else fail("a relocation of another kind in", "the library");
    }
}

static void load(const char *path) {
    size_t size;
    char *file = contents(path, &size);
    ElfW(Ehdr) *head = (ElfW(Ehdr) *)file;
    ElfW(Phdr) *parts = (ElfW(Phdr) *)(file + head->e_phoff);
    size_t whole = 0;
    for (int i = 0; i < head->e_phnum; i++)
        if (parts[i].p_type == PT_LOAD && parts[i].p_vaddr + parts[i].p_memsz > whole) whole = parts[i].p_vaddr + parts[i].p_memsz;
    base = mmap(NULL, whole + (1 << 16), PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) fail("no memory for", path);
    base = (char *)(((uintptr_t)base + 0xffff) & ~(uintptr_t)0xffff);
    ElfW(Dyn) *dynamic = NULL;
    for (int i = 0; i < head->e_phnum; i++) {
        if (parts[i].p_type == PT_LOAD) memcpy(base + parts[i].p_vaddr, file + parts[i].p_offset, parts[i].p_filesz);
        if (parts[i].p_type == PT_DYNAMIC) dynamic = (ElfW(Dyn) *)(base + parts[i].p_vaddr);
    }
    char *lists[2] = {NULL, NULL};
    size_t sizes[2] = {0, 0};
    int kinds[2] = {0, 0};
    size_t needed = 0;
    for (ElfW(Dyn) *d = dynamic; d && d->d_tag != DT_NULL; d++) {
        char *at = base + d->d_un.d_ptr;
        if (d->d_tag == DT_SYMTAB) symbols = (ElfW(Sym) *)at;
        if (d->d_tag == DT_STRTAB) names = at;
        if (d->d_tag == DT_RELA || d->d_tag == DT_REL) lists[0] = at;
        if (d->d_tag == DT_RELASZ || d->d_tag == DT_RELSZ) sizes[0] = d->d_un.d_val;
        if (d->d_tag == DT_PLTREL) kinds[1] = d->d_un.d_val == DT_RELA;
        if (d->d_tag == DT_RELA) kinds[0] = 1;
        if (d->d_tag == DT_JMPREL) lists[1] = at;
        if (d->d_tag == DT_PLTRELSZ) sizes[1] = d->d_un.d_val;
        if (d->d_tag == DT_NEEDED) needed = d->d_un.d_val;
    }
    if (needed && strcmp(names + needed, "libgcc_s.so.1")) fail("the library needs", names + needed);
    ElfW(Shdr) *sections = (ElfW(Shdr) *)(file + head->e_shoff);
    for (int i = 0; i < head->e_shnum; i++)
        if (sections[i].sh_type == SHT_DYNSYM) symbol_count = sections[i].sh_size / sizeof(ElfW(Sym));
    for (int i = 0; i < 2; i++)
        if (lists[i]) relocate(lists[i], sizes[i], kinds[i]);
    __builtin___clear_cache(base, base + whole);
    free(file);
}

static char *memory[MOST];
static int count;

static void allocate(size_t size) {
    size_t page = sysconf(_SC_PAGESIZE), whole = (size + page) / page * page;
    char *start = mmap(NULL, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED || count == MOST) fail("no memory", "for an array");
    if (mprotect(start + whole, page, PROT_NONE)) fail("no fence behind", "an array");
    memory[count++] = start + whole - size;
}

static void *function(const char *name) {
    void *found = defined(name);
    if (!found) fail("the library lacks", name);
    return found;
}

struct thread {
    int (*function)(void *, int);
    void *pointer;
    int number;
};

static void *begin(void *given) {
    struct thread *thread = given;
    thread->function(thread->pointer, thread->number);
    return NULL;
}

static void start(const char *name, int number, void *pointer) {
    struct thread *made = malloc(sizeof *made);
    pthread_t id;
    *made = (struct thread){(int (*)(void *, int))function(name), pointer, number};
    if (pthread_create(&id, NULL, begin, made)) fail("no thread for", name);
}

static void call(const char *name, const int64_t *w) {
    void *p[OPERANDS] = {0};
    if (w[0] > OPERANDS) fail("too many operands of", name);
    for (int i = 0; i < w[0]; i++) {
        const int64_t *operand = w + 1 + 2 * i;
        p[i] = operand[0] < 0 ? (void *)(intptr_t)operand[1] : memory[operand[0]] + operand[1];
    }
    typedef int (*function_t)(P4, P4, P4, P4);
    ((function_t)function(name))(p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7],
                                 p[8], p[9], p[10], p[11], p[12], p[13], p[14], p[15]);
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    load(argv[1]);
    size_t size;
    char *orders = contents(argv[2], &size);
    FILE *answers = fopen(argv[3], "wb");
    if (!answers) fail("cannot write", argv[3]);
    for (int64_t *w = (int64_t *)orders; (char *)w < orders + size;) {
        const char *name = (const char *)(w + 1);
        switch (w[0]) {
        case 1: allocate(w[1]); w += 2; break;
        case 2: memcpy(memory[w[1]] + w[2], w + 4, w[3]); w += 4 + (w[3] + 7) / 8; break;
        case 3: memset(memory[w[1]] + w[2], (int)w[4], w[3]); w += 5; break;
        case 4: *(uint64_t *)(memory[w[1]] + w[2]) = (uintptr_t)(memory[w[3]] + w[4]); w += 5; break;
        case 5: fwrite(memory[w[1]] + w[2], 1, w[3], answers); w += 4; break;
        case 6: call(name, w + 5); w += 6 + 2 * w[5]; break;
        case 7: start(name, (int)w[5], memory[w[6]] + w[7]); w += 8; break;
        case 8:
            ((int (*)(void *, void *, int))function(name))(memory[w[5]] + w[6], memory[w[7]] + w[8], (int)w[9]);
            w += 10;
            break;
        default: fail("no such", "order");
        }
    }
    return fclose(answers);
}
