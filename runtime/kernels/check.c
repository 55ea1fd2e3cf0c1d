/* The kernels without ONNX Runtime, in one program for each kind of CPU.
 *
 *   check fuzz SEED CASES [SET]
 *                           random shapes and values, extreme ones too, in memory of exactly the size that is needed;
 *                           prints a hash of each case's results, equal for all instruction sets and CPUs
 *   check run NAME CALLS    one shape, several times: what two numbers of calls differ by is the cost of a call;
 *                           prints how many multiply-adds that is
 *   check time THREADS      larger shapes than caches hold, in JSON: ms of the fastest call and of the median one
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "attention.h"
#include "matmul.h"
#include "pool.h"
#include "taps.h"

static uint64_t state;
static const instruction_set *set; /* NULL: the fastest */

static uint64_t number(void) { /* SplitMix64 (Steele, Lea and Flood 2014) */
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static int64_t below(int64_t end) { return (int64_t)(number() % (uint64_t)end); }

static float value(int extreme) {
    static const float EXTREMES[] = {0.0f, -0.0f, 1e-38f, 1e-45f, 3e38f, -3e38f, INFINITY, -INFINITY, NAN};
    if (extreme && !below(40)) return EXTREMES[below(sizeof EXTREMES / sizeof *EXTREMES)];
    return (float)(int64_t)(number() >> 40) / 8388608.0f - 1.0f;
}

static void *room(int64_t bytes) {
    void *memory = malloc(bytes ? (size_t)bytes : 1);
    if (!memory) exit(1);
    return memory;
}

static float *values(int64_t count, int extreme) {
    float *floats = room(count * (int64_t)sizeof(float));
    for (int64_t at = 0; at < count; at++) floats[at] = value(extreme);
    return floats;
}

static uint64_t hash_of(uint64_t hash, const void *data, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at++) hash = (hash ^ ((const uint8_t *)data)[at]) * 0x100000001b3u;
    return hash;
}

static uint64_t hash_floats(uint64_t hash, const float *data, int64_t count) {
    for (int64_t at = 0; at < count; at++) {
        float one = data[at] != data[at] ? 0.0f : data[at];
        hash = hash_of(hash ^ (data[at] != data[at]), &one, sizeof one);
    }
    return hash;
}

static void backwards(const void *context, task_function *function, size_t count, void *work) {
    (void)context;
    while (count--) function(work, count);
}

static void pooled(const void *context, task_function *function, size_t count, void *work) {
    (void)context;
    pool_run(function, count, work);
}

static threads any_threads(void) {
    void (*runs[])(const void *, task_function *, size_t, void *) = {NULL, backwards, pooled};
    return (threads){runs[below(3)], NULL};
}

static uint8_t *matrix(int64_t rows, int64_t columns, int bits, int minimums) {
    int64_t bytes = group_bytes(bits, minimums);
    int64_t groups = (rows + TILE_ROWS - 1) / TILE_ROWS * (columns / GROUP);
    uint8_t *weights = room(groups * bytes);
    for (int64_t at = 0; at < groups * bytes; at++) {
        weights[at] = (uint8_t)number();
        if (at % bytes >= code_bytes(bits) && at % 2) weights[at] &= 0xbb; /* float16 below 2, and none that is no number */
    }
    return weights;
}

static matmul_work product(int64_t count, int64_t rows, int64_t columns, int bits, int minimums, int extreme) {
    matmul_work work = {.set = set, .count = count, .width = columns, .columns = columns, .rows = rows, .bits = bits,
                        .minimums = minimums};
    work.x = values(count * columns, extreme); /* one after the other: a list has no order */
    work.weights = matrix(rows, columns, bits, minimums);
    work.y = room(count * rows * (int64_t)sizeof(float));
    work.scratch = room(count * columns / GROUP * (int64_t)sizeof(rounded));
    return work;
}

static void free_product(matmul_work *work) {
    free((void *)work->x), free((void *)work->weights), free(work->y), free(work->scratch);
}

/* Any channels of x, of a smaller width, and some that it has not. */
static int32_t *some_order(matmul_work *work) {
    int32_t *order = room(work->columns * (int64_t)sizeof *order);
    work->width = 1 + below(work->columns);
    for (int64_t at = 0; at < work->columns; at++) order[at] = (int32_t)(below(work->width + 2) - 1);
    return order;
}

static uint64_t fuzz_product(void) {
    int64_t rows = 1 + below(40), columns = GROUP * (1 + below(6)), count = 1 + below(below(2) ? 40 : 3);
    int minimums = (int)below(2), extreme = !below(3), bits = (int)(below(2) ? 4 : below(3) ? 5 + below(2) : 8);
    matmul_work work = product(count, rows, columns, bits, minimums && bits != 6, extreme);
    int32_t *order = below(2) ? some_order(&work) : NULL;
    work.order = order;
    matmul(&work, any_threads());
    uint64_t hash = hash_floats(0, work.y, count * rows);
    float *row = room(columns * (int64_t)sizeof(float));
    matmul_row(work.weights, columns, work.bits, work.minimums, below(rows), row);
    hash = hash_floats(hash, row, columns);
    free(row), free(order), free_product(&work);
    return hash;
}

static attention_work case_of(int64_t heads, int64_t kv_heads, int64_t size, int64_t past, int64_t count,
                              int64_t window, int int8, int extreme) {
    int64_t slots = past + count + below(3), entries = kv_heads * slots * size;
    attention_work work = {
        .count = count, .past = past, .slots = slots, .heads = heads, .kv_heads = kv_heads, .size = size,
        .window = window, .scale = 0.125f,
    };
    work.qkv = values(count * (heads + 2 * kv_heads) * size, extreme);
    work.cos = values((past + count) * size / 2, 0);
    work.sin = values((past + count) * size / 2, 0);
    work.out = room(count * heads * size * (int64_t)sizeof(float));
    if (int8) {
        int8_t *caches[2] = {room(entries), room(entries)};
        for (int64_t at = 0; at < 2 * entries; at++) caches[at % 2][at / 2] = (int8_t)number();
        work.keys = caches[0], work.values = caches[1];
        work.key_scales = values(kv_heads * size, 0), work.value_scales = values(kv_heads * size, 0);
    } else {
        work.keys = values(entries, extreme), work.values = values(entries, extreme);
    }
    work.scratch = room(attention_scratch(&work) * (int64_t)sizeof(float));
    return work;
}

static void free_case(attention_work *work) {
    free((void *)work->qkv), free((void *)work->cos), free((void *)work->sin), free(work->out), free(work->scratch);
    free(work->keys), free(work->values), free((void *)work->key_scales), free((void *)work->value_scales);
}

static uint64_t fuzz_attention(void) {
    int64_t kv_heads = 1 + below(3), heads = kv_heads * (1 + below(12)), size = 8 * (1 + below(9));
    int64_t count = 1 + below(below(2) ? 20 : 2), past = below(2) ? below(700) : below(40);
    int64_t window = below(3) ? 0 : 1 + below(past + count);
    int int8 = (int)below(2), extreme = !below(4);
    attention_work work = case_of(heads, kv_heads, size, past, count, window, int8, extreme);
    const float *cos = work.cos;
    if (!below(4)) work.cos = NULL;
    attention(&work, any_threads());
    uint64_t hash = hash_floats(0, work.out, count * heads * size);
    int64_t entries = kv_heads * work.slots * size;
    if (work.key_scales)
        hash = hash_of(hash_of(hash, work.keys, entries), work.values, entries);
    else
        hash = hash_floats(hash_floats(hash, work.keys, entries), work.values, entries);
    work.cos = cos;
    free_case(&work);
    return hash;
}

static int run_product(int64_t count, int bits, int minimums, int calls) {
    int64_t rows = 256, columns = 512;
    matmul_work work = product(count, rows, columns, bits, minimums, 0);
    for (int call = 0; call < calls; call++) matmul(&work, (threads){NULL, NULL});
    printf("%lld\n", (long long)(count * rows * columns));
    free_product(&work);
    return 0;
}

static int run_attention(int64_t heads, int64_t kv_heads, int64_t past, int int8, int calls) {
    attention_work work = case_of(heads, kv_heads, 64, past, 1, 0, int8, 0);
    for (int call = 0; call < calls; call++) attention(&work, (threads){NULL, NULL});
    printf("%lld\n", (long long)(2 * heads * (past + 1) * 64));
    free_case(&work);
    return 0;
}

/* Random shapes; 1 to 3 calls, each behind the entries of those before it. */
static uint64_t fuzz_taps(void) {
    int64_t half = 1 + below(40), taps = 2 + below(4), calls = 1 + below(3), slots = 3 * 6, extreme = below(2);
    int gated = (int)below(2);
    float *weights = values(taps * 2 * half, (int)extreme), *keys = values(slots * half, 0), *held = values(slots * half, 0);
    uint64_t hash = 0;
    for (int64_t call = 0, past = 0; call < calls; call++) {
        int64_t count = 1 + below(6);
        float *x = values(count * 2 * half * (gated ? 3 : 1), (int)extreme), *out = room(count * 2 * half * 4);
        taps_work work = {.x = x, .weights = weights, .keys = keys, .values = held, .out = out, .count = count, .past = past,
                          .width = 2 * half, .taps = taps, .gated = gated};
        causal_taps(&work);
        hash = hash_floats(hash, out, count * 2 * half), past += count;
        free(x), free(out);
    }
    free(weights), free(keys), free(held);
    return hash;
}

/* A gated convolution of three taps, for the multiply-adds of its layer's two matrices. */
static int run_taps(int calls) {
    int64_t width = 1024, slots = 8;
    float *x = values(3 * width, 0), *weights = values(3 * width, 0), *cache = values(slots * width, 0);
    float *out = room(width * 4);
    taps_work work = {.x = x, .weights = weights, .keys = cache, .values = cache + slots * width / 2, .out = out,
                      .count = 1, .past = slots - 1, .width = width, .taps = 3, .gated = 1};
    for (int call = 0; call < calls; call++) causal_taps(&work);
    printf("%lld\n", (long long)(4 * width * width));
    free(x), free(weights), free(cache), free(out);
    return 0;
}

enum { TIMED_CALLS = 15 };

static double now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return 1e3 * (double)now.tv_sec + 1e-6 * (double)now.tv_nsec;
}

static int by_size(const void *a, const void *b) {
    double one = *(const double *)a, other = *(const double *)b;
    return (one > other) - (one < other);
}

static void print_times(const char *name, double *ms, int64_t macs, int64_t bytes, const char *end) {
    qsort(ms, TIMED_CALLS, sizeof *ms, by_size);
    printf("\"%s\": {\"macs\": %lld, \"bytes\": %lld, \"ms_best\": %.3f, \"ms_p50\": %.3f}%s", name, (long long)macs,
           (long long)bytes, ms[0], ms[TIMED_CALLS / 2], end);
}

static void time_product(const char *name, int64_t count, int64_t rows, threads on) {
    int64_t columns = 1024;
    matmul_work work = product(count, rows, columns, 4, 0, 0);
    double ms[TIMED_CALLS];
    for (int call = 0; call < TIMED_CALLS; call++) {
        double begin = now_ms();
        matmul(&work, on);
        ms[call] = now_ms() - begin;
    }
    print_times(name, ms, count * rows * columns, rows * columns * group_bytes(4, 0) / (TILE_ROWS * GROUP), ", ");
    free_product(&work);
}

static void time_attention(const char *name, int64_t heads, int int8, threads on, const char *end) {
    int64_t past = 8191, layers = 4; /* as many caches, so that none is still in the CPU's */
    attention_work work[4];
    double ms[TIMED_CALLS];
    for (int64_t layer = 0; layer < layers; layer++) work[layer] = case_of(heads, 1, 64, past, 1, 0, int8, 0);
    for (int call = 0; call < TIMED_CALLS; call++) {
        double begin = now_ms();
        for (int64_t layer = 0; layer < layers; layer++) attention(&work[layer], on);
        ms[call] = (now_ms() - begin) / (double)layers;
    }
    print_times(name, ms, 2 * heads * (past + 1) * 64, 2 * (past + 1) * 64 * (int8 ? 1 : 4), end);
    for (int64_t layer = 0; layer < layers; layer++) free_case(&work[layer]);
}

static int time_all(int number) {
    if (number < 1) return 2;
    threads on = {pooled, NULL};
    pool_threads(number);
    printf("{\"threads\": %d, ", number);
    time_product("decode", 1, 65536, on);
    time_product("prefill", 64, 4096, on);
    time_attention("attention_8", 8, 0, on, ", ");
    time_attention("attention_8_int8", 8, 1, on, "}\n");
    return 0;
}

int main(int count, char **words) {
    if (count == 3 && !strcmp(words[1], "time")) return time_all(atoi(words[2]));
    if ((count == 4 || count == 5) && !strcmp(words[1], "fuzz")) {
        set = instruction_set_named(count == 5 ? words[4] : NULL);
        if (!set) return 2;
        pool_threads(3);
        for (int64_t at = 0; at < atoll(words[3]); at++) {
            state = (uint64_t)(atoll(words[2]) + at);
            printf("%016llx\n", (unsigned long long)(below(8) ? below(2) ? fuzz_product() : fuzz_attention() : fuzz_taps()));
        }
        return 0;
    }
    if (count != 4 || strcmp(words[1], "run")) return 2;
    int calls = atoi(words[3]);
    if (!strcmp(words[2], "decode")) return run_product(1, 4, 0, calls);
    if (!strcmp(words[2], "decode-minimums")) return run_product(1, 4, 1, calls);
    if (!strcmp(words[2], "prefill")) return run_product(16, 4, 0, calls);
    if (!strcmp(words[2], "decode-8")) return run_product(1, 8, 0, calls);
    if (!strcmp(words[2], "prefill-8")) return run_product(16, 8, 0, calls);
    if (!strcmp(words[2], "attention-8")) return run_attention(8, 1, 255, 0, calls);
    if (!strcmp(words[2], "attention-9-3")) return run_attention(9, 3, 255, 0, calls);
    if (!strcmp(words[2], "taps")) return run_taps(calls);
    if (!strcmp(words[2], "attention-8-int8")) return run_attention(8, 1, 255, 1, calls);
    return 2;
}
