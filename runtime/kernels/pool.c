/* A pool whose workers are made at the first call and never end.
 *
 * A ticket holds the number of a job and how many of its tasks are left. Who lowers it owns the task, and the job cannot
 * end before that task has: so what was read of the job behind the ticket still holds. Workers spin for a moment between
 * jobs, which follow each other within a token, then sleep until the number of the newest job changes.
 */
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "pool.h"

/* libc 2.34 moved the function, and has it under its first version too: the library loads on both sides of that. */
#if defined(__aarch64__)
#define FIRST_LIBC "GLIBC_2.17"
#define PAUSE() __asm__ volatile("yield")
#else
#define FIRST_LIBC "GLIBC_2.2.5"
#define PAUSE() __builtin_ia32_pause()
#endif
#if defined(__PIC__) && !defined(__PIE__)
__asm__(".symver pthread_create, pthread_create@" FIRST_LIBC);
#endif

enum { MOST_THREADS = 64, SPINS = 4000 };

static atomic_int wanted = 1; /* threads, the caller among them */
static atomic_flag busy = ATOMIC_FLAG_INIT;
static int workers;  /* that were made, by the owner of `busy` */
static pid_t maker; /* a fork has none of them */

static _Atomic(task_function *) job_task;
static _Atomic(void *) job_work;
static _Atomic uint64_t ticket; /* number of the job << 32 | tasks left */
static _Atomic uint32_t newest; /* number of a job: what sleepers wait for */
static atomic_int sleepers;
static atomic_size_t done; /* tasks of this job */

static void futex(int operation, uint32_t value) {
    syscall(SYS_futex, (uint32_t *)&newest, operation | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

/* Tasks of one job, the last one first, until none is left. */
static void take_tasks(uint32_t number) {
    uint64_t now = atomic_load(&ticket);
    while (now >> 32 == number && (uint32_t)now) {
        task_function *function = atomic_load(&job_task);
        void *work = atomic_load(&job_work);
        if (!atomic_compare_exchange_weak(&ticket, &now, now - 1)) continue;
        function(work, (uint32_t)now - 1);
        atomic_fetch_add(&done, 1);
        now = atomic_load(&ticket);
    }
}

static void *worker(void *unused) {
    (void)unused;
    uint32_t seen = 0;
    for (;;) {
        uint32_t now = atomic_load(&newest);
        for (int spin = 0; spin < SPINS && now == seen; spin++) {
            PAUSE();
            now = atomic_load(&newest);
        }
        if (now == seen) {
            atomic_fetch_add(&sleepers, 1);
            futex(FUTEX_WAIT, seen); /* returns at once where a job has come */
            atomic_fetch_sub(&sleepers, 1);
            continue;
        }
        seen = now;
        take_tasks(now);
    }
    return NULL;
}

void pool_threads(int count) { atomic_store(&wanted, count < 1 ? 1 : count < MOST_THREADS ? count : MOST_THREADS); }

static void make_workers(void) {
    if (maker != getpid()) workers = 0, maker = getpid(), atomic_store(&sleepers, 0);
    while (workers < atomic_load(&wanted) - 1) {
        pthread_t made;
        if (pthread_create(&made, NULL, worker, NULL)) return; /* fewer do as well */
        workers++;
    }
}

void pool_run(task_function *function, size_t count, void *work) {
    int alone = atomic_load(&wanted) == 1 || count > UINT32_MAX || atomic_flag_test_and_set(&busy);
    if (alone) {
        for (size_t task = 0; task < count; task++) function(work, task);
        return;
    }
    make_workers();
    atomic_store(&job_task, function), atomic_store(&job_work, work), atomic_store(&done, 0);
    uint32_t number = atomic_load(&newest) + 1;
    atomic_store(&ticket, (uint64_t)number << 32 | count);
    atomic_store(&newest, number);
    if (atomic_load(&sleepers)) futex(FUTEX_WAKE, INT32_MAX);
    take_tasks(number);
    for (unsigned spin = 1; atomic_load(&done) < count; spin++) {
        if (spin % SPINS)
            PAUSE();
        else
            syscall(SYS_sched_yield);
    }
    atomic_flag_clear(&busy);
}
