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
#include <utility>
#include <vector>

extern "C" const char *emulate(void *, const unsigned *, unsigned, const int64_t *, unsigned char *,
                               uint64_t, uint64_t, int);

namespace {
enum { OK = 0, INVALID = 1, NO_MEMORY = 2, BAD_IMAGE = 200, NO_CONTEXT = 201, NOT_READY = 600, LAUNCH = 719, UNSAFE = 900, INVALIDATED = 901, UNJOINED = 904, LOST = 700 };
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
  uint64_t given = 0, done = 0; // pieces of work
  bool recording = false;
  bool spoilt = false; // what it records, by a call that may not be made meanwhile
  std::vector<Work> recorded;
  Stream *joined = nullptr; // whose recording its work is part of
  bool apart = false;       // what it recorded there is waited for by nobody yet
};
struct Event {
  double ms = 0; // 0: has not come
  Stream *in = nullptr;
  uint64_t at = 0;             // all work of `in` before that is done then
  Stream *recorder = nullptr; // in whose recording it is
};
struct Graph {
  std::vector<Work> work;
};
struct Counts {
  int64_t bytes = 0, modules = 0, streams = 0, graphs = 0, launches = 0, graph_launches = 0, events = 0, pinned = 0;
} counts;

std::recursive_mutex lock;
thread_local std::vector<void *> contexts; // of this thread, the current one last
int other_context, lost = 0, failing_in = -1;
uint64_t seed = 88172645463325252u;
int version = 13050, major_ = 8, minor_ = 0, pools = 1;
int64_t limit = (int64_t)1 << 40;
std::vector<std::pair<void *, size_t>> handed;

Stream default_stream;
std::vector<Stream *> streams{&default_stream};
thread_local int capture_mode = 0; // CU_STREAM_CAPTURE_MODE_GLOBAL

Stream *known(Stream *stream) { return stream <= (Stream *)2 ? &default_stream : stream; }
// What is wrong before a call about this GPU does anything. One that is lost forgets its work.
int refused() {
  if (contexts.empty() || contexts.back() != &lock) return NO_CONTEXT;
  if (failing_in >= 0 && failing_in-- == 0) {
    lost = LOST;
    for (Stream *s : streams)
      s->work.clear(), s->done = s->given, s->recording = false, s->joined = nullptr;
  }
  return lost;
}
Stream *recorder(Stream *stream) {
  return stream->recording ? stream : stream->joined;
}
int put(Stream *stream, Work work) {
  if (int status = refused()) return status;
  stream = known(stream);
  if (Stream *into = recorder(stream))
    into->recorded.push_back(work), stream->apart = stream != into;
  else
    stream->work.push_back(work), stream->given++;
  return OK;
}
int run_until(Stream *stream, uint64_t count) {
  while (stream->done < count) {
    Work next = stream->work.front();
    stream->work.pop_front();
    stream->done++;
    if (int status = next()) return status;
  }
  return OK;
}
// Whether a call that may disturb what somebody records is made all the same.
bool unsafe() {
  if (capture_mode == 2) return false;
  for (Stream *s : streams)
    if (s->recording) return true;
  return false;
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
// Somebody else's context; and the GPU is lost after so many more calls, or found again (-1).
void *fake_other_context() { return &other_context; }
void fake_lost(int calls) { failing_in = calls, lost = 0; }
void fake_pools(int there) { pools = there; }
void fake_counts(int64_t *into) { memcpy(into, &counts, sizeof counts); }

int cuInit(unsigned) { return OK; }
int cuDriverGetVersion(int *found) { return *found = version, OK; }
int cuDeviceGetCount(int *found) { return *found = 1, OK; }
int cuDeviceGet(int *found, int number) { return *found = number, number ? INVALID : OK; }
int cuDeviceGetAttribute(int *found, int which, int) {
  return *found = which == 75 ? major_ : which == 76 ? minor_ : which == 115 ? pools : 0, OK;
}
int cuDevicePrimaryCtxRetain(void **made, int) { return *made = &lock, OK; }
int cuCtxPushCurrent_v2(void *context) {
  if (context != &lock && context != &other_context) return INVALID;
  return contexts.push_back(context), OK;
}
int cuCtxPopCurrent_v2(void **was) {
  if (contexts.empty()) return NO_CONTEXT;
  return *was = contexts.back(), contexts.pop_back(), OK;
}
int cuCtxGetCurrent(void **found) {
  return *found = contexts.empty() ? nullptr : contexts.back(), OK;
}
int cuDeviceGetPCIBusId(char *into, int size, int) {
  return snprintf(into, size, "0000:3B:00.0"), OK;
}
// NVML: a launch takes 5 millijoules.
int nvmlInit_v2() { return OK; }
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **made) {
  return *made = &lock, strcmp(bus, "0000:3B:00.0") ? INVALID : OK;
}
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules) {
  LOCKED;
  return *millijoules = 5 * counts.launches, device == &lock ? OK : INVALID;
}
int cuGetErrorName(int status, const char **name) {
  static const char *names[] = {"CUDA_SUCCESS", "CUDA_ERROR_INVALID_VALUE",
                                "CUDA_ERROR_OUT_OF_MEMORY"};
  *name = status < 3                ? names[status]
          : status == BAD_IMAGE     ? "CUDA_ERROR_INVALID_IMAGE"
          : status == NO_CONTEXT    ? "CUDA_ERROR_INVALID_CONTEXT"
          : status == LOST          ? "CUDA_ERROR_ILLEGAL_ADDRESS"
          : status == UNSAFE        ? "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"
          : status == INVALIDATED   ? "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"
          : status == UNJOINED      ? "CUDA_ERROR_STREAM_CAPTURE_UNJOINED"
                                    : "CUDA_ERROR_LAUNCH_FAILED";
  return OK;
}

int cuMemAlloc_v2(uint64_t *made, size_t size) {
  LOCKED;
  if (int status = refused()) return status;
  if (unsafe()) return UNSAFE;
  if (counts.bytes + (int64_t)size > limit) return NO_MEMORY;
  size_t whole = (size + 255) / 256 * 256;
  void *memory = aligned_alloc(256, whole);
  memset(memory, 0xff, whole);
  handed.push_back({memory, size});
  counts.bytes += size;
  return *made = (uint64_t)memory, OK;
}
static int set_free(uint64_t address) {
  for (auto h = handed.begin(); h != handed.end(); ++h)
    if ((uint64_t)h->first == address) {
      counts.bytes -= h->second;
      free(h->first);
      handed.erase(h);
      return OK;
    }
  return INVALID;
}
int cuMemFree_v2(uint64_t address) {
  LOCKED;
  if (int status = refused()) return status;
  if (unsafe()) return UNSAFE;
  for (Stream *s : streams)
    if (int status = run_until(s, s->given)) return status;
  return set_free(address);
}
int cuMemAllocAsync(uint64_t *made, size_t size, Stream *stream) {
  LOCKED;
  if (!pools || recorder(known(stream))) return INVALID;
  return cuMemAlloc_v2(made, size);
}
int cuMemFreeAsync(uint64_t address, Stream *stream) {
  LOCKED;
  if (!pools) return INVALID;
  return put(stream, [=] { return set_free(address); });
}
int cuMemHostAlloc(void **made, size_t size, unsigned) {
  LOCKED;
  if (int status = refused()) return status;
  if (unsafe()) return UNSAFE;
  *made = aligned_alloc(4096, (size + 4095) / 4096 * 4096);
  return memset(*made, 0xff, size), counts.pinned++, OK;
}
int cuMemFreeHost(void *memory) {
  LOCKED;
  if (int status = refused()) return status;
  return free(memory), counts.pinned--, OK;
}
int cuThreadExchangeStreamCaptureMode(int *mode) {
  std::swap(*mode, capture_mode);
  return OK;
}
int cuCtxSynchronize() {
  LOCKED;
  if (int status = refused()) return status;
  bool any = false;
  for (Stream *s : streams)
    any |= s->recording, s->spoilt = s->recording;
  if (any) return UNSAFE;
  for (Stream *s : streams)
    if (int status = run_until(s, s->given)) return status;
  return OK;
}
int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t size) {
  LOCKED;
  if (int status = refused()) return status;
  if (!holds(from, size)) return INVALID;
  return memcpy(to, (void *)from, size), OK;
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t size, Stream *stream) {
  LOCKED;
  if (!holds(to, size) || !holds(from, size)) return INVALID;
  return put(stream, [=] { return memcpy((void *)to, (void *)from, size), OK; });
}
int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t size) {
  LOCKED;
  if (int status = refused()) return status;
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
  if (int status = refused()) return status;
  return counts.streams++, streams.push_back(*made = new Stream), OK;
}
int cuStreamDestroy_v2(Stream *stream) { // kept: moments in it may be asked for
  LOCKED;
  return counts.streams--, run_until(stream, stream->given);
}
int cuStreamSynchronize(Stream *stream) {
  LOCKED;
  if (int status = refused()) return status;
  stream = known(stream);
  return recorder(stream) ? UNSAFE : run_until(stream, stream->given);
}
int cuStreamIsCapturing(Stream *stream, int *state) {
  LOCKED;
  return *state = recorder(known(stream)) != nullptr, OK;
}
int cuStreamBeginCapture_v2(Stream *stream, int) {
  LOCKED;
  if (recorder(stream) || stream->done < stream->given) return INVALID;
  return stream->recorded.clear(), stream->spoilt = false, stream->recording = true, OK;
}
int cuStreamEndCapture(Stream *stream, Graph **made) {
  LOCKED;
  if (!stream->recording) return INVALID;
  stream->recording = false;
  bool apart = false;
  for (Stream *s : streams)
    if (s->joined == stream) apart |= s->apart, s->joined = nullptr, s->apart = false;
  if (stream->spoilt) return *made = nullptr, INVALIDATED;
  if (apart) return *made = nullptr, UNJOINED;
  counts.graphs++;
  return *made = new Graph{stream->recorded}, OK;
}
int cuStreamWaitEvent(Stream *stream, Event *event, unsigned) {
  LOCKED;
  stream = known(stream);
  if (event->recorder) {
    if (!event->recorder->recording) return INVALID; // it was only ever recorded
    if (event->recorder != stream && !stream->recording) stream->joined = event->recorder;
    if (event->in) event->in->apart = false;
    return OK;
  }
  if (!event->in) return OK;
  if (recorder(stream)) return UNSAFE;
  Stream *in = event->in;
  uint64_t at = event->at;
  return put(stream, [=] { return run_until(in, at); });
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
  if (int status = refused()) return status;
  return counts.events++, *made = new Event, OK;
}
int cuEventDestroy_v2(Event *event) {
  LOCKED;
  return counts.events--, OK; // kept: its moment may still come
}
int cuEventRecord(Event *event, Stream *stream) {
  LOCKED;
  stream = known(stream);
  event->in = stream, event->recorder = recorder(stream);
  if (event->recorder) return OK;
  event->ms = 0;
  event->at = stream->given + 1;
  return put(stream, [=] {
    auto now = std::chrono::steady_clock::now().time_since_epoch();
    return event->ms = std::chrono::duration<double, std::milli>(now).count(), OK;
  });
}
int cuEventSynchronize(Event *event) {
  LOCKED;
  if (int status = refused()) return status;
  return event->recorder ? UNSAFE : event->in ? run_until(event->in, event->at) : OK;
}
int cuEventQuery(Event *event) {
  LOCKED;
  if (unsafe()) return UNSAFE;
  return !event->in || event->in->done >= event->at ? OK : NOT_READY;
}
int cuEventElapsedTime(float *ms, Event *from, Event *to) {
  LOCKED;
  if (!from->ms || !to->ms) return NOT_READY;
  return *ms = to->ms - from->ms, OK;
}

int cuModuleLoadData(Module **made, const unsigned char *image) {
  LOCKED;
  if (int status = refused()) return status;
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
