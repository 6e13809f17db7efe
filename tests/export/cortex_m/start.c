/* A Cortex-M with nothing on it -> a program with files: its start, and calls to the host by
 * semihosting. Two functions of C are all that an exported model asks for.
 */
#include <stddef.h>
#include <stdint.h>

int main(void);

extern uint32_t stack_top;

static int host(int what, const void *arguments) {
    register int r0 __asm__("r0") = what;
    register const void *r1 __asm__("r1") = arguments;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

void leave(int status) {
    const uintptr_t words[2] = {0x20026, (uintptr_t)status};
    host(0x20, words);
    for (;;) {
    }
}

int open_file(const char *name, int to_write) {
    size_t length = 0;
    while (name[length]) length++;
    const uintptr_t words[3] = {(uintptr_t)name, to_write ? 5 : 1, length};
    return host(1, words);
}

/* 0, or how many bytes were not moved. */
int read_file(int file, void *into, size_t count) {
    const uintptr_t words[3] = {(uintptr_t)file, (uintptr_t)into, count};
    return host(6, words);
}

int write_file(int file, const void *from, size_t count) {
    const uintptr_t words[3] = {(uintptr_t)file, (uintptr_t)from, count};
    return host(5, words);
}

typedef uint32_t word __attribute__((aligned(1), may_alias));

void *memcpy(void *restrict to, const void *restrict from, size_t count) {
    unsigned char *t = to;
    const unsigned char *f = from;
    for (; count >= 4; count -= 4, t += 4, f += 4) *(word *)(void *)t = *(const word *)(const void *)f;
    while (count--) *t++ = *f++;
    return to;
}

void *memset(void *to, int value, size_t count) {
    unsigned char *t = to;
    uint32_t all = (unsigned char)value * 0x01010101u;
    for (; count >= 4; count -= 4, t += 4) *(word *)(void *)t = all;
    while (count--) *t++ = (unsigned char)value;
    return to;
}

static void fault(void) { leave(70); }

void start(void) {
    *(volatile uint32_t *)0xE000ED88 |= 0xFu << 20; /* floating point is allowed */
    __asm__ volatile("dsb\n\tisb" ::: "memory");
    leave(main());
}

__attribute__((section(".vectors"), used)) void *const vectors[16] = {
    &stack_top, (void *)start, (void *)fault, (void *)fault,
    (void *)fault, (void *)fault, (void *)fault,
};
