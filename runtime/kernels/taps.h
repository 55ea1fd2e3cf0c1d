/* Causal taps: each channel of a position and of those before it times a weight, over a cache of their inputs. */
#ifndef MERINO_TAPS_H
#define MERINO_TAPS_H
#include <stdint.h>

typedef struct {
    const float *x;       /* [count, width], or gated [count, 3 * width]: a, b and c, whose input is a * c */
    const float *weights; /* [taps, width], that of the position itself last */
    float *keys, *values; /* [slots, width / 2] each: the halves of the inputs; new ones are written into them */
    float *out;           /* [count, width]; gated: times b */
    int64_t count, past, width, taps;
    int gated;
} taps_work;

void causal_taps(const taps_work *work);
#endif
