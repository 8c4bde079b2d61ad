/* The thread pool of target `native`, and nothing else: another one with these three functions may take its place.
 *
 * A job is `count` units. Who is awake claims the next few by compare-and-swap on one word that also holds the job's number, so
 * that a thread that comes late finds the word changed and takes nothing: nobody waits for it. Idle threads spin for a moment,
 * then sleep. Which thread runs which unit differs from run to run; what a unit computes does not. */
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

enum { SPINS = 20000, CHUNKS = 4 }; /* spins before sleep (some 100 us); chunks per thread that a job is cut into */

struct pool {
  _Alignas(64) atomic_uint_least64_t word; /* number of the job << 32 | next unit */
  _Alignas(64) atomic_long done;
  _Alignas(64) _Atomic(task_function) task;
  _Atomic(const void *) args;
  atomic_long count, chunk;
  atomic_int sleepers, stop;
  pthread_mutex_t mutex;
  pthread_cond_t wake;
  int threads;
  pthread_t workers[];
};

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

/* Claim and run units of job number `job` until none is left or the job is another one. */
static void work(struct pool *pool, uint64_t job) {
  for (;;) {
    uint64_t word = atomic_load(&pool->word);
    task_function task = atomic_load(&pool->task);
    const void *args = atomic_load(&pool->args);
    long count = atomic_load(&pool->count);
    long chunk = atomic_load(&pool->chunk);
    long begin = (long)(word & 0xffffffff), end = begin + chunk < count ? begin + chunk : count;
    if (word >> 32 != job || begin >= count) return; /* a closed job has no unit left */
    if (!atomic_compare_exchange_weak(&pool->word, &word, job << 32 | (uint64_t)end)) continue;
    task(args, begin, end);
    atomic_fetch_add(&pool->done, end - begin);
  }
}

static void *worker(void *argument) {
  struct pool *pool = argument;
  uint64_t seen = 0;
  while (!atomic_load(&pool->stop)) {
    uint64_t job = atomic_load(&pool->word) >> 32;
    for (int i = 0; job == seen && i < SPINS; i++) {
      relax();
      job = atomic_load(&pool->word) >> 32;
    }
    if (job == seen) {
      pthread_mutex_lock(&pool->mutex);
      atomic_fetch_add(&pool->sleepers, 1);
      while (atomic_load(&pool->word) >> 32 == seen && !atomic_load(&pool->stop))
        pthread_cond_wait(&pool->wake, &pool->mutex);
      atomic_fetch_sub(&pool->sleepers, 1);
      pthread_mutex_unlock(&pool->mutex);
      continue;
    }
    seen = job;
    work(pool, job);
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
  for (int i = 0; i < pool->threads - 1; i++) pthread_join(pool->workers[i], NULL);
  pthread_cond_destroy(&pool->wake);
  pthread_mutex_destroy(&pool->mutex);
  free(pool);
}

/* The caller is one of the threads. NULL when the system has no more of them. */
API struct pool *pool_open(int threads) {
  size_t size = sizeof(struct pool) + sizeof(pthread_t) * (size_t)(threads - 1);
  struct pool *pool = aligned_alloc(64, (size + 63) / 64 * 64);
  if (!pool) return NULL;
  *pool = (struct pool){.threads = 1};
  pthread_mutex_init(&pool->mutex, NULL);
  pthread_cond_init(&pool->wake, NULL);
  for (int i = 0; i < threads - 1; i++, pool->threads++)
    if (pthread_create(&pool->workers[i], NULL, worker, pool)) {
      pool_close(pool);
      return NULL;
    }
  return pool;
}

/* Run task(args, begin, end) over all of [0, count). One caller at a time. */
API void pool_run(struct pool *pool, task_function task, const void *args, long count) {
  if (pool->threads == 1 || count <= 1) {
    task(args, 0, count);
    return;
  }
  long chunk = count / (pool->threads * CHUNKS);
  /* Every claim on the last job fails from here on; only then is the next one written down. */
  uint64_t closed = ((atomic_load(&pool->word) >> 32) + 1) & 0xffffffff, job = (closed + 1) & 0xffffffff;
  atomic_store(&pool->word, closed << 32 | 0xffffffff);
  atomic_store(&pool->task, task);
  atomic_store(&pool->args, args);
  atomic_store(&pool->count, count);
  atomic_store(&pool->chunk, chunk > 0 ? chunk : 1);
  atomic_store(&pool->done, 0);
  atomic_store(&pool->word, job << 32);
  rouse(pool);
  work(pool, job);
  for (int i = 0; atomic_load(&pool->done) != count; i++)
    if (i < SPINS) relax();
    else sched_yield();
}
