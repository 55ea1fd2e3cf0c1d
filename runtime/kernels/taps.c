/* See taps.h. One loop for all products, so that the library stays small. */
#pragma GCC optimize("O2")
#include "taps.h"
#include <string.h>
#include "lanes.h"

/* out = a * b + sum of `count` channels; sum may be out, or NULL. */
static __attribute__((noinline)) void products(float *out, const float *a, const float *b, const float *sum, int64_t count) {
    int64_t at = 0;
    for (; at + LANES <= count; at += LANES) {
        floats product = load(a + at) * load(b + at);
        if (sum) product += load(sum + at);
        store(out + at, product);
    }
    for (; at < count; at++) {
        float product = a[at] * b[at];
        out[at] = sum ? product + sum[at] : product;
    }
}

void causal_taps(const taps_work *work) {
    int64_t width = work->width, half = width / 2;
    for (int64_t index = 0; index < work->count; index++) {
        int64_t slot = work->past + index, first = slot - (work->taps - 1);
        const float *x = work->x + index * width * (work->gated ? 3 : 1);
        float *out = work->out + index * width;
        for (int64_t from = 0; from < width; from += half) {
            float *cache = from ? work->values : work->keys, *row = cache + slot * half, *sum = NULL;
            if (work->gated)
                products(row, x + from, x + 2 * width + from, NULL, half);
            else
                memcpy(row, x + from, (size_t)half * sizeof *row);
            for (int64_t at = first > 0 ? first : 0; at <= slot; at++, sum = out + from)
                products(out + from, cache + at * half, work->weights + (at - first) * width + from, sum, half);
        }
        if (work->gated) products(out, out, x + width, NULL, width);
    }
}
