/* How a kernel spreads its work: `run` calls task(work, 0) to task(work, count - 1), on whichever threads there are. */
#ifndef MERINO_PARALLEL_H
#define MERINO_PARALLEL_H
#include <stddef.h>

typedef void task_function(void *work, size_t index);
typedef struct {
    void (*run)(const void *context, task_function *task, size_t count, void *work);
    const void *context;
} threads;

static inline void spread(threads on, task_function *task, size_t count, void *work) {
    if (count > 1 && on.run) {
        on.run(on.context, task, count, work);
        return;
    }
    for (size_t index = 0; index < count; index++) task(work, index);
}
#endif
