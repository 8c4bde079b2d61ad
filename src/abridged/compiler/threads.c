/* The thread pool of target `native`, and nothing else: another one with these three functions may take its place.
 *
 * A job is `count` units, of which each thread has a share of its own: the same part of every job, so that what a thread wrote
 * in one job lies in its own cache when it reads that in the next. It claims a few units at a time by compare-and-swap on the
 * share's word, which also holds the job's number, so that a thread that comes late finds the word changed and takes nothing:
 * nobody waits for it. Who has finished helps with the other shares. Idle threads spin for a moment, then sleep. Which thread
 * runs which unit differs from run to run; what a unit computes does not. */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

#ifdef __GNUC__
#define API __attribute__((visibility("default")))
#else
#define API
#endif

typedef void (*task_function)(const void *args, long begin, long end);

enum { SPINS = 20000, CHUNKS = 8 }; /* spins before sleep (some 100 us); claims that a share is cut into */

struct share {
  _Alignas(64) atomic_uint_least64_t word; /* number of the job << 32 | next unit */
  atomic_long end;
};

struct worker {
  struct pool *pool;
  int own; /* its share */
  pthread_t thread;
};

struct pool {
  _Alignas(64) atomic_uint_least64_t job; /* number of the job that may be worked on */
  _Alignas(64) atomic_long done;
  _Alignas(64) _Atomic(task_function) task;
  _Atomic(const void *) args;
  atomic_long chunk;
  atomic_int sleepers, stop;
  pthread_mutex_t mutex;
  pthread_cond_t wake;
  int threads;
  struct worker *workers;
  struct share shares[];
};

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

/* Claim and run units of one share of job number `job` until none is left or the job is another one. */
static void work_on(struct pool *pool, struct share *share, uint64_t job) {
  for (long done = 0;;) {
    uint64_t word = atomic_load(&share->word);
    task_function task = atomic_load(&pool->task);
    const void *args = atomic_load(&pool->args);
    long last = atomic_load(&share->end), chunk = atomic_load(&pool->chunk);
    long begin = (long)(word & 0xffffffff), end = begin + chunk < last ? begin + chunk : last;
    if (word >> 32 != job || begin >= last) { /* a closed share has no unit left */
      if (done) atomic_fetch_add(&pool->done, done);
      return;
    }
    if (!atomic_compare_exchange_weak(&share->word, &word, job << 32 | (uint64_t)end)) continue;
    task(args, begin, end);
    done += end - begin;
  }
}

/* The share `own` first, then what is left of the others. */
static void work(struct pool *pool, int own, uint64_t job) {
  for (int i = 0; i < pool->threads; i++) work_on(pool, &pool->shares[(own + i) % pool->threads], job);
}

static void *worker(void *argument) {
  const struct worker *self = argument;
  struct pool *pool = self->pool;
  uint64_t seen = 0;
  while (!atomic_load(&pool->stop)) {
    uint64_t job = atomic_load(&pool->job);
    for (int i = 0; job == seen && i < SPINS; i++) {
      relax();
      job = atomic_load(&pool->job);
    }
    if (job == seen) {
      pthread_mutex_lock(&pool->mutex);
      atomic_fetch_add(&pool->sleepers, 1);
      while (atomic_load(&pool->job) == seen && !atomic_load(&pool->stop)) pthread_cond_wait(&pool->wake, &pool->mutex);
      atomic_fetch_sub(&pool->sleepers, 1);
      pthread_mutex_unlock(&pool->mutex);
      continue;
    }
    seen = job;
    work(pool, self->own, job);
  }
  return NULL;
}

static void rouse(struct pool *pool) {
  if (!atomic_load(&pool->sleepers) && !atomic_load(&pool->stop)) return;
  pthread_mutex_lock(&pool->mutex);
  pthread_cond_broadcast(&pool->wake);
  pthread_mutex_unlock(&pool->mutex);
}

/* Ends its threads; none may be inside pool_run. */
API void pool_close(struct pool *pool) {
  atomic_store(&pool->stop, 1);
  rouse(pool);
  for (int i = 1; i < pool->threads; i++) pthread_join(pool->workers[i].thread, NULL);
  pthread_cond_destroy(&pool->wake);
  pthread_mutex_destroy(&pool->mutex);
  free(pool->workers);
  free(pool);
}

/* The caller is one of the threads. NULL when the system has no more of them. */
API struct pool *pool_open(int threads) {
  size_t size = sizeof(struct pool) + sizeof(struct share) * (size_t)threads;
  struct pool *pool = aligned_alloc(64, (size + 63) / 64 * 64);
  struct worker *workers = malloc(sizeof(struct worker) * (size_t)threads);
  if (!pool || !workers) {
    free(pool);
    free(workers);
    return NULL;
  }
  *pool = (struct pool){.threads = 1, .workers = workers};
  pthread_mutex_init(&pool->mutex, NULL);
  pthread_cond_init(&pool->wake, NULL);
  for (int i = 0; i < threads; i++) pool->shares[i] = (struct share){0};
  for (int i = 1; i < threads; i++, pool->threads++) {
    workers[i] = (struct worker){.pool = pool, .own = i};
    if (pthread_create(&workers[i].thread, NULL, worker, &workers[i])) {
      pool_close(pool);
      return NULL;
    }
  }
  return pool;
}

/* Run task(args, begin, end) over all of [0, count). One caller at a time. */
API void pool_run(struct pool *pool, task_function task, const void *args, long count) {
  const int threads = pool->threads;
  if (threads == 1 || count <= 1) {
    task(args, 0, count);
    return;
  }
  const long chunk = count / (threads * (long)CHUNKS);
  const uint64_t job = (atomic_load(&pool->job) + 1) & 0xffffffff;
  /* Nothing of the last job is left to claim; close its shares all the same, and only then write the next one down. */
  for (int i = 0; i < threads; i++) atomic_store(&pool->shares[i].word, (job ^ 0x80000000) << 32 | 0xffffffff);
  atomic_store(&pool->task, task);
  atomic_store(&pool->args, args);
  atomic_store(&pool->chunk, chunk > 0 ? chunk : 1);
  atomic_store(&pool->done, 0);
  for (int i = 0; i < threads; i++) {
    atomic_store(&pool->shares[i].end, count * (i + 1) / threads);
    atomic_store(&pool->shares[i].word, job << 32 | (uint64_t)(count * i / threads));
  }
  atomic_store(&pool->job, job);
  rouse(pool);
  work(pool, 0, job);
  for (int i = 0; atomic_load(&pool->done) != count; i++)
    if (i < SPINS) relax();
    else sched_yield();
}
