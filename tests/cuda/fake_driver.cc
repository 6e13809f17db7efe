// The functions of NVIDIA's driver that the runtime calls, over the emulator of emulator.cc.
//
// A module is a shared library for this CPU in the place of a cubin. Work of a stream is put off
// until the stream is waited for, so that a result that is read too early is found; memory is full
// of rubbish when it is handed out, and must have been freed in the end.

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <dlfcn.h>
#include <elf.h>
#include <functional>
#include <mutex>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

extern "C" const char *emulate(void *, const unsigned *, unsigned, const int64_t *, unsigned char *,
                               uint64_t, uint64_t, int);

namespace {
enum { OK = 0, NOT_READY = 600, INVALID = 1, NO_MEMORY = 2, BAD_IMAGE = 200, NO_CONTEXT = 201, LAUNCH = 719 };
typedef std::function<int()> Work;
struct Module {
  void *library;
  unsigned char *shared;
  uint64_t shared_bytes;
};
struct Function {
  Module *module;
  void *code;
};
struct Stream {
  std::deque<Work> work;
  bool recording = false;
  std::vector<Work> recorded;
};
struct Event {
  double ms = 0; // 0: has not come
};
struct Graph {
  std::vector<Work> work;
};
struct Counts {
  int64_t bytes = 0, modules = 0, streams = 0, graphs = 0, launches = 0, graph_launches = 0, events = 0;
} counts;

std::recursive_mutex lock;
thread_local int contexts = 0;
uint64_t seed = 88172645463325252u;
int version = 13050, major_ = 8, minor_ = 0;
int64_t limit = (int64_t)1 << 40;
std::vector<std::pair<void *, size_t>> handed;

int put(Stream *stream, Work work) {
  if (!contexts) return NO_CONTEXT;
  if (stream->recording)
    stream->recorded.push_back(work);
  else
    stream->work.push_back(work);
  return OK;
}
bool holds(uint64_t address, size_t size) {
  for (auto &h : handed)
    if (address >= (uint64_t)h.first && address + size <= (uint64_t)h.first + h.second) return true;
  return false;
}
} // namespace

#define LOCKED std::lock_guard<std::recursive_mutex> held(lock)
extern "C" {
void fake_set(int driver_version, int major, int minor, int64_t most_bytes) {
  version = driver_version, major_ = major, minor_ = minor, limit = most_bytes;
}
void fake_counts(int64_t *into) { memcpy(into, &counts, sizeof counts); }

int cuInit(unsigned) { return OK; }
int cuDriverGetVersion(int *found) { return *found = version, OK; }
int cuDeviceGetCount(int *found) { return *found = 1, OK; }
int cuDeviceGet(int *found, int number) { return *found = number, number ? INVALID : OK; }
int cuDeviceGetAttribute(int *found, int which, int) {
  return *found = which == 75 ? major_ : which == 76 ? minor_ : 0, OK;
}
int cuDevicePrimaryCtxRetain(void **made, int) { return *made = &lock, OK; }
int cuCtxPushCurrent_v2(void *context) { return contexts++, context == &lock ? OK : INVALID; }
int cuCtxPopCurrent_v2(void **) { return contexts-- > 0 ? OK : NO_CONTEXT; }
int cuGetErrorName(int status, const char **name) {
  static const char *names[] = {"CUDA_SUCCESS", "CUDA_ERROR_INVALID_VALUE",
                                "CUDA_ERROR_OUT_OF_MEMORY"};
  *name = status < 3                ? names[status]
          : status == BAD_IMAGE     ? "CUDA_ERROR_INVALID_IMAGE"
          : status == NO_CONTEXT    ? "CUDA_ERROR_INVALID_CONTEXT"
                                    : "CUDA_ERROR_LAUNCH_FAILED";
  return OK;
}

int cuMemAlloc_v2(uint64_t *made, size_t size) {
  LOCKED;
  if (!contexts) return NO_CONTEXT;
  if (counts.bytes + (int64_t)size > limit) return NO_MEMORY;
  size_t whole = (size + 255) / 256 * 256;
  void *memory = aligned_alloc(256, whole);
  memset(memory, 0xff, whole);
  handed.push_back({memory, size});
  counts.bytes += size;
  return *made = (uint64_t)memory, OK;
}
int cuMemFree_v2(uint64_t address) {
  LOCKED;
  for (auto h = handed.begin(); h != handed.end(); ++h)
    if ((uint64_t)h->first == address) {
      counts.bytes -= h->second;
      free(h->first);
      handed.erase(h);
      return OK;
    }
  return INVALID;
}
int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t size) {
  LOCKED;
  if (!contexts) return NO_CONTEXT;
  if (!holds(to, size)) return INVALID;
  memcpy((void *)to, from, size);
  return OK;
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, Stream *stream) {
  LOCKED;
  if (!holds(to, size)) return INVALID;
  return put(stream, [=] { return memcpy((void *)to, from, size), OK; });
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, Stream *stream) {
  LOCKED;
  if (!holds(from, size)) return INVALID;
  return put(stream, [=] { return memcpy(to, (void *)from, size), OK; });
}

int cuStreamCreate(Stream **made, unsigned) {
  LOCKED;
  return counts.streams++, *made = new Stream, OK;
}
int cuStreamDestroy_v2(Stream *stream) {
  LOCKED;
  return counts.streams--, delete stream, OK;
}
int cuStreamSynchronize(Stream *stream) {
  LOCKED;
  while (!stream->work.empty()) {
    int status = stream->work.front()();
    stream->work.pop_front();
    if (status) return status;
  }
  return OK;
}
int cuStreamBeginCapture_v2(Stream *stream, int) {
  LOCKED;
  if (stream->recording || !stream->work.empty()) return INVALID;
  return stream->recorded.clear(), stream->recording = true, OK;
}
int cuStreamEndCapture(Stream *stream, Graph **made) {
  LOCKED;
  if (!stream->recording) return INVALID;
  stream->recording = false, counts.graphs++;
  return *made = new Graph{stream->recorded}, OK;
}
int cuGraphInstantiateWithFlags(Graph **made, Graph *graph, uint64_t) {
  LOCKED;
  return counts.graphs++, *made = new Graph(*graph), OK;
}
int cuGraphDestroy(Graph *graph) {
  LOCKED;
  return counts.graphs--, delete graph, OK;
}
int cuGraphExecDestroy(Graph *graph) { return cuGraphDestroy(graph); }
int cuGraphLaunch(Graph *graph, Stream *stream) {
  LOCKED;
  counts.graph_launches++;
  for (auto &work : graph->work)
    if (int status = put(stream, work)) return status;
  return OK;
}

int cuEventCreate(Event **made, unsigned) {
  LOCKED;
  return counts.events++, *made = new Event, OK;
}
int cuEventDestroy_v2(Event *event) {
  LOCKED;
  return counts.events--, delete event, OK;
}
int cuEventRecord(Event *event, Stream *stream) {
  LOCKED;
  return put(stream, [=] {
    auto now = std::chrono::steady_clock::now().time_since_epoch();
    return event->ms = std::chrono::duration<double, std::milli>(now).count(), OK;
  });
}
int cuEventElapsedTime(float *ms, Event *from, Event *to) {
  LOCKED;
  if (!from->ms || !to->ms) return NOT_READY;
  return *ms = to->ms - from->ms, OK;
}

int cuModuleLoadData(Module **made, const unsigned char *image) {
  LOCKED;
  if (memcmp(image, ELFMAG, SELFMAG)) return BAD_IMAGE;
  const Elf64_Ehdr *head = (const Elf64_Ehdr *)image;
  size_t size = head->e_shoff + (size_t)head->e_shnum * head->e_shentsize;
  char path[64];
  int file = memfd_create("module", 0); // stays open, so that its path is used once
  if (write(file, image, size) != (ssize_t)size) return BAD_IMAGE;
  snprintf(path, sizeof path, "/proc/self/fd/%d", file);
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) return fprintf(stderr, "%s\n", dlerror()), BAD_IMAGE;
  auto bound = (void *(*)(int))dlsym(library, "shared_bound");
  unsigned char *begin = (unsigned char *)bound(0);
  *made = new Module{library, begin, (uint64_t)((unsigned char *)bound(1) - begin)};
  return counts.modules++, OK;
}
int cuModuleUnload(Module *module) {
  LOCKED;
  return counts.modules--, dlclose(module->library), delete module, OK;
}
int cuModuleGetFunction(Function **made, Module *module, const char *name) {
  LOCKED;
  void *code = dlsym(module->library, name);
  if (!code) return INVALID;
  return *made = new Function{module, code}, OK; // as long as its module, of which there are few
}
int cuLaunchKernel(Function *function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by,
                   unsigned bz, unsigned, Stream *stream, void **given, void **) {
  LOCKED;
  if (by != 1 || bz != 1 || bx > 1024 || !x || !y || !z) return INVALID;
  std::vector<int64_t> values(32);
  for (int i = 0; i < 32 && given[i]; i++) values[i] = *(int64_t *)given[i];
  return put(stream, [=] {
    counts.launches++;
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    const unsigned blocks[] = {x, y, z};
    const char *error = emulate(function->code, blocks, bx, values.data(), function->module->shared,
                                function->module->shared_bytes, seed, 0xff);
    if (error) fprintf(stderr, "%s\n", error);
    return error ? LAUNCH : OK;
  });
}
}
