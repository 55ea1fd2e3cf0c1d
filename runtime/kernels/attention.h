/* Attention of the queries that share a KV head, as rows of one matrix: keys and values are read once for all of them.
 *
 * Rows of a KV head are (new position, query head of the group), eight to a tile. Keys are taken KEYS at a time: their
 * scores, the softmax so far (Milakov and Gimelshein 2018, arXiv 1805.02867) and the sum of values stay in the first
 * cache, so the softmax takes no pass over memory of its own.
 */
#ifndef MERINO_ATTENTION_H
#define MERINO_ATTENTION_H
#include <stddef.h>
#include <stdint.h>
#include "parallel.h"

typedef struct {
    const float *qkv;                     /* [count, (heads + 2 * kv_heads) * size] of the new positions */
    const float *cos, *sin;               /* [positions, size / 2]; NULL: no rotary positions */
    void *keys, *values;                  /* [kv_heads, slots, size], float or int8; new ones are written into them */
    const float *key_scales, *value_scales; /* [kv_heads, size] of an int8 cache, else NULL */
    float *out;                           /* [count, heads * size] */
    float *scratch;                       /* attention_scratch() floats */
    int64_t count, past, slots, heads, kv_heads, size;
    int64_t window;                       /* positions that a query sees, its own included; 0: all */
    float scale;
} attention_work;

int64_t attention_scratch(const attention_work *work);
void attention(const attention_work *work, threads on);
#endif
