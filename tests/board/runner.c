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
 *   6 name count memory...      call a function; the name is 32 bytes, offsets follow each memory
 *   7 name number memory offset call a function of memory and a number in a thread of its own
 *   8 name memory offset memory offset number      call a function of two pointers and a number
 */
#define _GNU_SOURCE
#include <elf.h>
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
#define F(name) {#name, (void *)name}

typedef double (*one_t)(double);
typedef double (*two_t)(double, double);
#define ONE(name) {#name, (void *)(one_t)name}
#define TWO(name) {#name, (void *)(two_t)name}

static const struct {
    const char *name;
    void *address;
} given[] = {
    F(memcpy), F(memmove), F(memset), F(sched_yield), F(sem_init), F(sem_wait), F(sem_post), F(syscall),
    ONE(exp), ONE(log), ONE(sin), ONE(cos), ONE(tan), ONE(asin), ONE(acos), ONE(atan), ONE(sinh), ONE(cosh),
    ONE(tanh), ONE(asinh), ONE(acosh), ONE(atanh), ONE(erf), ONE(floor), ONE(ceil), ONE(trunc), TWO(pow), TWO(fmod),
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

static char *base;
static Elf64_Sym *symbols;
static const char *names;
static size_t symbol_count;

static void *defined(const char *name) {
    for (size_t i = 0; i < symbol_count; i++)
        if (symbols[i].st_shndx != SHN_UNDEF && !strcmp(names + symbols[i].st_name, name)) return base + symbols[i].st_value;
    return NULL;
}

static uint64_t address_of(const Elf64_Sym *symbol) {
    const char *name = names + symbol->st_name;
    void *found = symbol->st_shndx != SHN_UNDEF ? base + symbol->st_value : defined(name);
    for (size_t i = 0; !found && i < sizeof given / sizeof *given; i++)
        if (!strcmp(given[i].name, name)) found = given[i].address;
    if (!found && ELF64_ST_BIND(symbol->st_info) != STB_WEAK) fail("the library asks for", name);
    return (uint64_t)found;
}

static void relocate(const Elf64_Rela *entries, size_t size) {
    for (size_t i = 0; i < size / sizeof *entries; i++) {
        const Elf64_Rela *r = entries + i;
        uint64_t *place = (uint64_t *)(base + r->r_offset), type = ELF64_R_TYPE(r->r_info);
        const Elf64_Sym *symbol = symbols + ELF64_R_SYM(r->r_info);
        if (type == R_AARCH64_RELATIVE) *place = (uint64_t)base + r->r_addend;
        else if (type == R_AARCH64_GLOB_DAT || type == R_AARCH64_JUMP_SLOT || type == R_AARCH64_ABS64)
            *place = address_of(symbol) + r->r_addend;
        else fail("a relocation of another kind in", "the library");
    }
}

static void load(const char *path) {
    size_t size;
    char *file = contents(path, &size);
    Elf64_Ehdr *head = (Elf64_Ehdr *)file;
    Elf64_Phdr *parts = (Elf64_Phdr *)(file + head->e_phoff);
    size_t whole = 0;
    for (int i = 0; i < head->e_phnum; i++)
        if (parts[i].p_type == PT_LOAD && parts[i].p_vaddr + parts[i].p_memsz > whole) whole = parts[i].p_vaddr + parts[i].p_memsz;
    base = mmap(NULL, whole + (1 << 16), PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) fail("no memory for", path);
    base = (char *)(((uintptr_t)base + 0xffff) & ~(uintptr_t)0xffff);
    Elf64_Dyn *dynamic = NULL;
    for (int i = 0; i < head->e_phnum; i++) {
        if (parts[i].p_type == PT_LOAD) memcpy(base + parts[i].p_vaddr, file + parts[i].p_offset, parts[i].p_filesz);
        if (parts[i].p_type == PT_DYNAMIC) dynamic = (Elf64_Dyn *)(base + parts[i].p_vaddr);
    }
    char *lists[2] = {NULL, NULL};
    size_t sizes[2] = {0, 0};
    for (Elf64_Dyn *d = dynamic; d && d->d_tag != DT_NULL; d++) {
        char *at = base + d->d_un.d_ptr;
        if (d->d_tag == DT_SYMTAB) symbols = (Elf64_Sym *)at;
        if (d->d_tag == DT_STRTAB) names = at;
        if (d->d_tag == DT_RELA) lists[0] = at;
        if (d->d_tag == DT_RELASZ) sizes[0] = d->d_un.d_val;
        if (d->d_tag == DT_JMPREL) lists[1] = at;
        if (d->d_tag == DT_PLTRELSZ) sizes[1] = d->d_un.d_val;
        if (d->d_tag == DT_NEEDED) fail("the library needs", "another library");
    }
    Elf64_Shdr *sections = (Elf64_Shdr *)(file + head->e_shoff);
    for (int i = 0; i < head->e_shnum; i++)
        if (sections[i].sh_type == SHT_DYNSYM) symbol_count = sections[i].sh_size / sizeof(Elf64_Sym);
    for (int i = 0; i < 2; i++)
        if (lists[i]) relocate((Elf64_Rela *)lists[i], sizes[i]);
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
    void *p[8] = {0};
    if (w[0] > 8) fail("too many operands of", name);
    for (int i = 0; i < w[0]; i++) p[i] = memory[w[1 + 2 * i]] + w[2 + 2 * i];
    typedef int (*function_t)(void *, void *, void *, void *, void *, void *, void *, void *);
    ((function_t)function(name))(p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]);
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
        case 4: *(uint64_t *)(memory[w[1]] + w[2]) = (uint64_t)(memory[w[3]] + w[4]); w += 5; break;
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
