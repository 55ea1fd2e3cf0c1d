/* See taps.h. Loops over channels are vectorized by the compiler; without contraction, so that each CPU rounds alike. */
#include "taps.h"

static void add_half(float *restrict out, const float *restrict row, const float *restrict weights, int64_t half) {
    for (int64_t channel = 0; channel < half; channel++) out[channel] += row[channel] * weights[channel];
}

static void store_half(float *restrict row, const float *restrict a, const float *restrict c, int64_t half) {
    for (int64_t channel = 0; channel < half; channel++) row[channel] = c ? a[channel] * c[channel] : a[channel];
}

void causal_taps(const taps_work *work) {
    int64_t width = work->width, half = width / 2;
    for (int64_t index = 0; index < work->count; index++) {
        int64_t slot = work->past + index, first = slot - (work->taps - 1);
        const float *x = work->x + index * width * (work->gated ? 3 : 1), *c = work->gated ? x + 2 * width : 0;
        float *restrict out = work->out + index * width;
        store_half(work->keys + slot * half, x, c, half);
        store_half(work->values + slot * half, x + half, c ? c + half : 0, half);
        for (int64_t channel = 0; channel < width; channel++) out[channel] = 0;
        for (int64_t row = first > 0 ? first : 0; row <= slot; row++) {
            const float *weights = work->weights + (row - first) * width;
            add_half(out, work->keys + row * half, weights, half);
            add_half(out + half, work->values + row * half, weights + half, half);
        }
        if (work->gated)
            for (int64_t channel = 0; channel < width; channel++) out[channel] *= x[width + channel];
    }
}
