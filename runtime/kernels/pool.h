/* Threads of this library, for ONNX Runtime before 1.17, which lends its own to no operator. */
#ifndef MERINO_POOL_H
#define MERINO_POOL_H
#include "parallel.h"

/* The number of threads of each later call, the caller among them; 1 until it is set. */
void pool_threads(int count);

/* Calls function(work, 0) to function(work, count - 1). Alone where another call runs or no thread can be made. */
void pool_run(task_function *function, size_t count, void *work);
#endif
