/* How a kernel spreads its work: `run` calls each(work, 0) to each(work, count - 1), on whichever threads there are. */
#ifndef MERINO_PARALLEL_H
#define MERINO_PARALLEL_H
#include <stddef.h>

typedef void each_task(void *work, size_t task);
typedef struct {
    void (*run)(const void *context, each_task *each, size_t count, void *work);
    const void *context;
} threads;

static inline void spread(threads on, each_task *each, size_t count, void *work) {
    if (count > 1 && on.run) {
        on.run(on.context, each, count, work);
        return;
    }
    for (size_t task = 0; task < count; task++) each(work, task);
}
#endif
