// A kernel compiled by g++ (on_cpu.h), a grid -> run on this CPU, one block after the other, a fiber
// for each thread.
//
// The fibers of a block run in a random order, each until it waits, and shared memory is full of
// rubbish when a block begins: so a race, or a read of what nobody wrote, gives another result each
// time. A barrier that some threads do not come to is an error.

#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <ucontext.h>
#include <vector>

struct Index {
  unsigned x, y, z;
};
extern "C" {
Index threadIdx, blockIdx;
}

namespace {
enum { READY, AT_BARRIER, IN_WARP, DONE };
const unsigned STACK = 256 << 10;

struct Copy {
  void *to;
  const void *from;
  int size;
};
struct Fiber {
  std::deque<std::vector<Copy>> copies; // by groups, the last of which is not committed
  ucontext_t start;
  jmp_buf at;
  bool fresh;
  int state;
};
struct Warp {
  unsigned char left[2][32][64];
  unsigned arrived, round;
};

std::vector<Fiber> fibers;
std::vector<Warp> warps;
std::vector<unsigned> ready;
jmp_buf home;
unsigned current, waiting, threads;
uint64_t seed;
char failure[160];
void (*kernel)(int64_t, ...);
const int64_t *given;

unsigned any(unsigned below) {
  seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
  return (unsigned)(seed >> 32) % below;
}

void fail(const char *what) {
  snprintf(failure, sizeof failure, "%s", what);
}

void body() {
  const int64_t *a = given;
  kernel(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12], a[13],
         a[14], a[15], a[16], a[17], a[18], a[19], a[20], a[21], a[22], a[23], a[24], a[25], a[26],
         a[27], a[28], a[29], a[30], a[31]);
  fibers[current].state = DONE;
  for (auto &group : fibers[current].copies)
    if (!group.empty()) fail("a thread ends before its copies have come");
  _longjmp(home, 1);
}

void wait_as(int state) {
  fibers[current].state = state;
  if (!_setjmp(fibers[current].at)) _longjmp(home, 1);
}

void wake(unsigned fiber) {
  fibers[fiber].state = READY;
  ready.push_back(fiber);
}

void run_next() {
  unsigned at = any(ready.size());
  current = ready[at];
  ready[at] = ready.back();
  ready.pop_back();
  threadIdx = {current, 0, 0};
  Fiber &fiber = fibers[current];
  if (_setjmp(home)) return;
  if (!fiber.fresh) _longjmp(fiber.at, 1);
  fiber.fresh = false;
  setcontext(&fiber.start);
}

void run_block() {
  waiting = 0;
  ready.clear();
  for (Warp &warp : warps) warp.arrived = 0;
  for (unsigned i = 0; i < threads; i++) fibers[i].fresh = true, fibers[i].copies.assign(1, {}), wake(i);
  while (!ready.empty() && !failure[0]) run_next();
  unsigned done = 0;
  for (unsigned i = 0; i < threads; i++) done += fibers[i].state == DONE;
  if (done != threads && !failure[0])
    snprintf(failure, sizeof failure, "%u of %u threads of block %u,%u,%u wait for ever",
             threads - done, threads, blockIdx.x, blockIdx.y, blockIdx.z);
}

void reserve(unsigned count) {
  static std::vector<char *> stacks;
  while (stacks.size() < count) stacks.push_back((char *)malloc(STACK));
  if (fibers.size() < count) fibers = std::vector<Fiber>(count);
  for (unsigned i = 0; i < count; i++) {
    getcontext(&fibers[i].start);
    fibers[i].start.uc_stack.ss_sp = stacks[i];
    fibers[i].start.uc_stack.ss_size = STACK;
    fibers[i].start.uc_link = nullptr;
    makecontext(&fibers[i].start, body, 0);
  }
}
} // namespace

extern "C" {
void block_barrier() {
  if (++waiting < threads) return wait_as(AT_BARRIER);
  waiting = 0;
  for (unsigned i = 0; i < threads; i++)
    if (i != current) wake(i);
}

unsigned warp_lane() { return current & 31; }

const unsigned char *warp_exchange(const void *own, unsigned size) {
  Warp &warp = warps[current / 32];
  unsigned char(*left)[64] = warp.left[warp.round & 1];
  memcpy(left[current & 31], own, size);
  if (++warp.arrived < 32) {
    wait_as(IN_WARP);
  } else {
    warp.arrived = 0, warp.round++;
    for (unsigned i = current & ~31u; i <= (current | 31); i++)
      if (i != current) wake(i);
  }
  return left[0];
}

void start_copy(void *to, const void *from, int size) {
  if ((uintptr_t)to % 16 || (size && (uintptr_t)from % 16)) fail("16 bytes at another address");
  if (size != 0 && size != 16) fail("a copy of another size than 16 bytes");
  memset(to, 0xff, 16);
  fibers[current].copies.back().push_back({to, from, size});
}
void commit_copies() { fibers[current].copies.emplace_back(); }
void finish_copies(unsigned pending) {
  auto &groups = fibers[current].copies;
  for (; groups.size() > pending + 1; groups.pop_front())
    for (Copy &copy : groups.front()) {
      memset(copy.to, 0, 16);
      memcpy(copy.to, copy.from, copy.size);
    }
}

void misaligned(const void *address, unsigned size) {
  snprintf(failure, sizeof failure, "%u bytes at %p, which is no multiple of that", size, address);
  wait_as(IN_WARP);
}

// Run a function of at most 32 numbers and addresses; 0, or what went wrong.
const char *emulate(void *function, const unsigned *blocks, unsigned block, const int64_t *values,
                    unsigned char *shared, uint64_t shared_bytes, uint64_t random, int rubbish) {
  kernel = (void (*)(int64_t, ...))function, given = values, threads = block, seed = random | 1;
  failure[0] = 0;
  reserve(block);
  warps.assign((block + 31) / 32, Warp());
  for (blockIdx.z = 0; blockIdx.z < blocks[2]; blockIdx.z++)
    for (blockIdx.y = 0; blockIdx.y < blocks[1]; blockIdx.y++)
      for (blockIdx.x = 0; blockIdx.x < blocks[0]; blockIdx.x++) {
        if (shared_bytes) memset(shared, rubbish, shared_bytes);
        run_block();
        if (failure[0]) return failure;
      }
  return nullptr;
}
}
