/* Times the network on the device and prints one line of JSON, for `abridged measure DIR --from FILE`.
 *
 * Needs POSIX. Times of an emulator mean nothing: where one is seen, or told of by EMULATED=1 in the environment, the
 * network runs once and the line has none. */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>
#include "model.h"

enum { LEAST = 10, MOST = 200 };
#define SECONDS 5.0
#ifndef FLAGS
#define FLAGS ""
#endif
#ifdef __clang__
#define COMPILER __VERSION__
#else
#define COMPILER "GCC " __VERSION__
#endif

@BUFFERS@
static const float *const inputs[] = {@INPUTS@};
static float *const outputs[] = {@OUTPUTS@};
static double times[MOST];

static double milliseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return 1e3 * (double)now.tv_sec + 1e-6 * (double)now.tv_nsec;
}

static int by_size(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* Between the samples next to it, as numpy does. */
static double quantile(double q, int n) {
  double at = q * (n - 1);
  int low = (int)at, high = low + 1 < n ? low + 1 : low;
  return times[low] + (at - low) * (times[high] - times[low]);
}

static int emulated(void) {
  char path[256] = "";
  const char *told = getenv("EMULATED");
  if (told && strcmp(told, "") && strcmp(told, "0")) return 1;
  return readlink("/proc/thread-self/exe", path, sizeof path - 1) > 0 && strstr(path, "qemu") != NULL;
}

/* The CPU as Linux names it, or the kind of machine. */
static void machine(char *name, size_t size) {
  static const char *const labels[] = {"model name", "Hardware", "Model", "uarch"};
  char line[512];
  struct utsname system;
  FILE *file = fopen("/proc/cpuinfo", "r");
  snprintf(name, size, "%s", uname(&system) < 0 ? "unknown" : system.machine);
  for (size_t found = 4; file && fgets(line, sizeof line, file);)
    for (size_t i = 0; i < found; i++)
      if (!strncmp(line, labels[i], strlen(labels[i])) && strchr(line, ':')) {
        char *value = strchr(line, ':') + 1;
        value[strcspn(value, "\n")] = 0;
        snprintf(name, size, "%s, %s", value + strspn(value, " "), system.machine);
        found = i;
      }
  if (file) fclose(file);
}

static void field(const char *name, const char *text) {
  printf("\"%s\": \"", name);
  for (; *text; text++) putchar(*text == '"' || *text == '\\' || (unsigned char)*text < ' ' ? ' ' : *text);
  printf("\", ");
}

int main(void) {
  char name[600];
  int n = 0, guess = emulated();
@WEIGHTS@
@RAMPS@
  model_prepare(arena);
  model_run(inputs, outputs, weights, arena, 0, 0);
  for (double start = milliseconds(), at = start; !guess && n < MOST && (n < LEAST || at - start < 1e3 * SECONDS); n++) {
    double before = milliseconds();
    model_run(inputs, outputs, weights, arena, 0, 0);
    at = milliseconds();
    times[n] = at - before;
  }
  machine(name, sizeof name);
  printf("{");
  field("weights", MODEL_WEIGHTS_ID);
  field("machine", name);
  field("compiler", COMPILER);
  field("flags", FLAGS);
  printf("\"weights_bytes\": %ld, \"arena_bytes\": %ld, ", MODEL_WEIGHTS_BYTES, MODEL_ARENA_BYTES);
  printf("\"threads\": 1, \"runs\": %d, \"emulated\": %s", n, guess ? "true" : "false");
  if (n) {
    qsort(times, (size_t)n, sizeof *times, by_size);
    double median = quantile(0.5, n);
    printf(", \"median_ms\": %.6g, \"p95_ms\": %.6g", median, quantile(0.95, n));
    printf(", \"spread\": %.4g", (quantile(0.75, n) - quantile(0.25, n)) / median);
  }
  puts("}");
  return 0;
}
