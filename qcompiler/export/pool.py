"""A model's name -> the C text of a pool of POSIX threads, for NAME_run_threads."""

from __future__ import annotations


def pool(name: str) -> str:
    """The text of NAME_pool.h."""
    return _TEXT.replace("@M", name.upper()).replace("@n", name)


_TEXT = """/* A pool of POSIX threads for @n_run_threads, in the caller's memory:
 *
 *   struct @n_pool pool;
 *   @n_pool_start(&pool, 4);                         4 with the caller
 *   struct @n_threads threads = {@n_pool_for, &pool};
 *   @n_run_threads(&inputs, &outputs, workspace, &threads);
 *   @n_pool_stop(&pool);
 *
 * A pool serves one run at a time. Waiting threads sleep.
 */

#ifndef @M_POOL_H
#define @M_POOL_H

#include <pthread.h>

#include "@n.h"

enum { @M_MOST_THREADS = 32 };

struct @n_pool {
    pthread_t threads[@M_MOST_THREADS];
    pthread_mutex_t mutex;
    pthread_cond_t wake, done;
    void (*unit)(void *job, int i);
    void *job;
    int started, units, next, left, stop;
};

/* Runs units that nobody has begun; the mutex is held before and after. */
static inline void @n_pool_help(struct @n_pool *pool) {
    while (pool->next < pool->units) {
        int i = pool->next++;
        pthread_mutex_unlock(&pool->mutex);
        pool->unit(pool->job, i);
        pthread_mutex_lock(&pool->mutex);
        if (--pool->left == 0) pthread_cond_signal(&pool->done);
    }
}

static inline void *@n_pool_work(void *given) {
    struct @n_pool *pool = (struct @n_pool *)given;
    pthread_mutex_lock(&pool->mutex);
    while (!pool->stop) {
        @n_pool_help(pool);
        pthread_cond_wait(&pool->wake, &pool->mutex);
    }
    pthread_mutex_unlock(&pool->mutex);
    return NULL;
}

static inline void @n_pool_for(void *given, int units, void (*unit)(void *, int), void *job) {
    struct @n_pool *pool = (struct @n_pool *)given;
    pthread_mutex_lock(&pool->mutex);
    pool->unit = unit;
    pool->job = job;
    pool->next = 0;
    pool->left = pool->units = units;
    pthread_cond_broadcast(&pool->wake);
    @n_pool_help(pool);
    while (pool->left) pthread_cond_wait(&pool->done, &pool->mutex);
    pthread_mutex_unlock(&pool->mutex);
}

static inline void @n_pool_stop(struct @n_pool *pool) {
    pthread_mutex_lock(&pool->mutex);
    pool->stop = 1;
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
    for (int i = 0; i < pool->started; i++) pthread_join(pool->threads[i], NULL);
    pthread_cond_destroy(&pool->done);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->mutex);
}

/* 0 or a POSIX error; fewer threads than requested are no error. */
static inline int @n_pool_start(struct @n_pool *pool, int threads) {
    int status = 0;
    pool->started = pool->units = pool->next = pool->left = pool->stop = 0;
    if ((status = pthread_mutex_init(&pool->mutex, NULL))) return status;
    if ((status = pthread_cond_init(&pool->wake, NULL))) return status;
    if ((status = pthread_cond_init(&pool->done, NULL))) return status;
    while (pool->started < threads - 1 && pool->started < @M_MOST_THREADS) {
        pthread_t *next = pool->threads + pool->started;
        if ((status = pthread_create(next, NULL, @n_pool_work, pool))) break;
        pool->started++;
    }
    return pool->started ? 0 : status;
}

#endif /* @M_POOL_H */
"""
