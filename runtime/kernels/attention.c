/* Attention by groups. See attention.h; rows, tiles, pieces and shares:
 *
 * tile    eight rows; four on NEON where that leaves fewer lanes empty. A lane computes the same in either
 * piece   up to PIECE_ROWS rows of one KV head, over one share of the keys; pieces run in parallel
 * share   where there are few pieces, the keys are cut into up to MOST_SHARES, whose results are joined at the end
 */
#include "attention.h"
#include <string.h>
#include "lanes.h"

enum { KEYS = 64, AT_ONCE = 8, PIECE_ROWS = 32, MOST_TILES = PIECE_ROWS / 4, MOST_ROWS = 8, MOST_SHARES = 8, SHARE_KEYS = 128, ENOUGH_PIECES = 8 };
enum { FEW = 4 }; /* queries of one position that share a KV head, up to which no tile is made */
enum { GUESSES = 9 }; /* new positions up to which each is computed as a decode step computes it, to the bit */
#define ALWAYS_INLINE static inline __attribute__((always_inline)) /* so that numbers of rows are constants */
#define NEVER (-3e38f) /* the score of a key that a row does not see; finite, since inf - inf is no number */

/* 2^x of x <= 0; 0 below -126, where float32 has no normal numbers. Relative error below 2e-7. Scores are in units of
 * log 2, so this is the softmax's exponential. The polynomial is the Taylor series of 2^rest, |rest| <= 0.5. */
static inline floats power_of_two(floats x) {
    const floats least = same(-126.0f);
    floats bounded = larger(least, x); /* what is no number stays none: AVX2 returns the second operand */
    integers power = nearest(bounded);
    floats rest = bounded - __builtin_convertvector(power, floats);
    floats sum = fused(same(1.5403530e-4f), rest, same(1.3333558e-3f));
    sum = fused(sum, rest, same(9.6181291e-3f));
    sum = fused(sum, rest, same(5.5504109e-2f));
    sum = fused(sum, rest, same(2.4022651e-1f));
    sum = fused(sum, rest, same(6.9314718e-1f));
    sum = fused(sum, rest, same(1.0f));
    integers scaled = (integers)sum + (power << 23);
    return (floats)(scaled & ~(integers)(x <= least));
}

/* Scores [AT_ONCE keys][rows] of keys float [AT_ONCE][size] with queries [size][rows]; rows = parts * LANES. */
static inline void score_keys(const float *queries, const float *const keys[AT_ONCE], int64_t size, const int parts,
                              float *scores) {
    floats sum[AT_ONCE][EIGHT];
#pragma GCC unroll 8
    for (int key = 0; key < AT_ONCE; key++)
        for (int part = 0; part < parts; part++) sum[key][part] = same(0);
    for (int64_t at = 0; at < size; at += 4) {
        quad four[AT_ONCE];
#pragma GCC unroll 8
        for (int key = 0; key < AT_ONCE; key++) four[key] = load_quad(keys[key] + at);
#define CHANNEL(index)                                                                              \
    {                                                                                               \
        floats query[EIGHT];                                                                        \
        _Pragma("GCC unroll 2") for (int part = 0; part < parts; part++)                            \
            query[part] = load(queries + ((at + index) * parts + part) * LANES);                    \
        _Pragma("GCC unroll 8") for (int key = 0; key < AT_ONCE; key++)                             \
            _Pragma("GCC unroll 2") for (int part = 0; part < parts; part++)                        \
                sum[key][part] = FUSED_WITH(query[part], four[key], index, sum[key][part]);         \
    }
        CHANNEL(0) CHANNEL(1) CHANNEL(2) CHANNEL(3)
#undef CHANNEL
    }
#pragma GCC unroll 8
    for (int key = 0; key < AT_ONCE; key++)
        for (int part = 0; part < parts; part++) store(scores + (key * parts + part) * LANES, sum[key][part]);
}

/* sum [rows][8 channels] += shares [rows] of one key x its value. */
static inline void add_value(floats sum[MOST_ROWS][EIGHT], const float *shares, const float *values, const int rows) {
    floats value[EIGHT];
    quad low = load_quad(shares), high = load_quad(shares + rows - 4);
#pragma GCC unroll 2
    for (int part = 0; part < EIGHT; part++) value[part] = load(values + part * LANES);
#define ROW(row, four, index)                                                                       \
    _Pragma("GCC unroll 2") for (int part = 0; part < EIGHT; part++)                                \
        sum[row][part] = FUSED_WITH(value[part], four, index, sum[row][part]);
    ROW(0, low, 0) ROW(1, low, 1) ROW(2, low, 2) ROW(3, low, 3)
    if (rows == MOST_ROWS) {
        ROW(4, high, 0) ROW(5, high, 1) ROW(6, high, 2) ROW(7, high, 3)
    }
#undef ROW
}

/* Eight channels from `at` on of mixed [rows][size] = mixed * kept[row] + shares [count][rows] x values [count][size] */
static inline void mix_values(const float *shares, const float *values, int64_t count, int64_t size, int64_t at,
                              const float *kept, const int parts, float *mixed) {
    const int rows = parts * LANES;
    floats sum[MOST_ROWS][EIGHT];
#pragma GCC unroll 8
    for (int row = 0; row < rows; row++)
        for (int part = 0; part < EIGHT; part++)
            sum[row][part] = load(mixed + row * size + at + part * LANES) * same(kept[row]);
    values += at;
    for (int64_t pairs = count / 2; pairs; pairs--, shares += 2 * rows, values += 2 * size) {
        add_value(sum, shares, values, rows);
        add_value(sum, shares + rows, values + size, rows);
    }
    if (count % 2) add_value(sum, shares, values, rows);
#pragma GCC unroll 8
    for (int row = 0; row < rows; row++)
        for (int part = 0; part < EIGHT; part++) store(mixed + row * size + at + part * LANES, sum[row][part]);
}

/* A column of scores, LANES wide and each `step` floats behind the other, becomes 2^(score - largest). largest, total
 * and kept (what earlier sums are multiplied with) are per lane. Not inlined: in a larger function the constants of
 * `power_of_two` are loaded each time. */
static __attribute__((noinline)) void soften(float *scores, int64_t count, int step, float *largest, float *total,
                                             float *kept) {
    floats before = load(largest), most = before;
    const float *end = scores + count * step;
    for (const float *at = scores; at < end; at += step) most = larger(most, load(at));
    floats keep = power_of_two(before - most), sum = load(total) * keep;
    for (float *at = scores; at < end; at += step) {
        floats share = power_of_two(load(at) - most);
        store(at, share);
        sum += share;
    }
    store(largest, most), store(total, sum), store(kept, keep);
}

/* The first key that the row of a new position sees, and the one behind its last. */
static inline int64_t first_key(const attention_work *work, int64_t position) {
    int64_t first = work->past + position + 1 - work->window;
    return work->window && first > 0 ? first : 0;
}

static inline int64_t group_of(const attention_work *work) { return work->heads / work->kv_heads; }
static inline int64_t rows_of(const attention_work *work) { return work->count * group_of(work); }
static inline int64_t row_pieces(const attention_work *work) {
    return (rows_of(work) + PIECE_ROWS - 1) / PIECE_ROWS;
}

static int tile_rows(const attention_work *work) {
    int64_t by_four = (rows_of(work) + 3) / 4 * 4, by_eight = (rows_of(work) + 7) / 8 * 8;
    return LANES == 4 && by_four * 6 / 5 < by_eight ? 4 : 8; /* a tile of four takes a fifth more for each lane */
}

static int64_t shares_of(const attention_work *work) {
    int64_t pieces = work->kv_heads * row_pieces(work), keys = work->past + work->count;
    int64_t wanted = (keys + SHARE_KEYS - 1) / SHARE_KEYS;
    if (pieces >= ENOUGH_PIECES) return 1;
    return wanted < MOST_SHARES ? wanted : MOST_SHARES;
}

/* Of each row a tile has its queries [size][rows], mixed [rows][size], scores [KEYS][rows], largest and total [rows]. */
static inline int64_t row_floats(const attention_work *work) { return 2 * work->size + KEYS + 2; }
static inline int64_t piece_floats(const attention_work *work) {
    return PIECE_ROWS * row_floats(work) + (work->key_scales ? KEYS * work->size : 0);
}

static inline int is_guessed(const attention_work *work) { return work->count > 1 && work->count <= GUESSES; }

/* The work of one new position. */
static attention_work at_position(const attention_work *work, int64_t position) {
    attention_work one = *work;
    one.count = 1, one.past += position;
    one.qkv += position * (work->heads + 2 * work->kv_heads) * work->size;
    one.out += position * work->heads * work->size;
    return one;
}

int64_t attention_scratch(const attention_work *work) {
    if (is_guessed(work)) {
        attention_work last = at_position(work, work->count - 1);
        return work->count * attention_scratch(&last);
    }
    return work->kv_heads * row_pieces(work) * shares_of(work) * piece_floats(work);
}

/* x [size], rotated to its position: channel i is paired with i + size / 2. */
static inline void rotate(const attention_work *work, const float *x, int64_t position, float *out) {
    int64_t half = work->size / 2;
    const float *cos = work->cos + (work->past + position) * half, *sin = work->sin + (work->past + position) * half;
    for (int64_t at = 0; at < half; at++) {
        float left = x[at], right = x[at + half];
        out[at] = left * cos[at] - right * sin[at];
        out[at + half] = right * cos[at] + left * sin[at];
    }
}

static inline int8_t code_of(float value, float scale) {
    float code = __builtin_rintf(value / scale);
    if (!(code >= -128.0f)) return -128; /* what is no number too */
    return (int8_t)(code > 127.0f ? 127.0f : code);
}

static void put_entry(const attention_work *work, void *cache, const float *scales, int64_t head, int64_t position,
                      const float *entry) {
    int64_t at = (head * work->slots + work->past + position) * work->size;
    if (!scales) {
        memcpy((float *)cache + at, entry, sizeof(float) * work->size);
        return;
    }
    for (int64_t channel = 0; channel < work->size; channel++)
        ((int8_t *)cache)[at + channel] = code_of(entry[channel], scales[head * work->size + channel]);
}

/* The new position's keys and values into the cache. `rotated`: [size] */
static void put_position(const attention_work *work, int64_t position, float *rotated) {
    const float *x = work->qkv + position * (work->heads + 2 * work->kv_heads) * work->size;
    for (int64_t head = 0; head < work->kv_heads; head++) {
        const float *key = x + (work->heads + head) * work->size, *value = key + work->kv_heads * work->size;
        if (work->cos) {
            rotate(work, key, position, rotated);
            key = rotated;
        }
        put_entry(work, work->keys, work->key_scales, head, position, key);
        put_entry(work, work->values, work->value_scales, head, position, value);
    }
}

static inline int is_few(const attention_work *work) { return work->count == 1 && group_of(work) <= FEW; }

/* Queries [group][size] of the only position, scaled. */
static void pack_few(const attention_work *work, int64_t kv_head, float *queries) {
    int64_t group = group_of(work), size = work->size;
    const float *scales = work->key_scales ? work->key_scales + kv_head * size : NULL;
    const float scale = work->scale * 1.44269504f; /* 1 / log 2 */
    for (int64_t row = 0; row < group; row++, queries += size) {
        const float *query = work->qkv + (kv_head * group + row) * size;
        if (work->cos)
            rotate(work, query, 0, queries);
        else
            memcpy(queries, query, sizeof(float) * size);
        for (int64_t at = 0; at < size; at++) queries[at] *= scale;
        for (int64_t at = 0; scales && at < size; at++) queries[at] *= scales[at];
    }
}

/* Queries [size][rows] of the tile whose first row is `row`, scaled; zeros behind the last row. */
static void pack_queries(const attention_work *work, int64_t kv_head, int64_t row, int rows, float *queries,
                         float *rotated) {
    int64_t group = group_of(work), size = work->size, width = (work->heads + 2 * work->kv_heads) * size;
    const float *scales = work->key_scales ? work->key_scales + kv_head * size : NULL;
    const float scale = work->scale * 1.44269504f; /* 1 / log 2 */
    for (int lane = 0; lane < rows; lane++, row++) {
        if (row >= rows_of(work)) {
            for (int64_t at = 0; at < size; at++) queries[at * rows + lane] = 0.0f;
            continue;
        }
        int64_t position = row / group, head = kv_head * group + row % group;
        const float *query = work->qkv + position * width + head * size;
        if (work->cos) {
            rotate(work, query, position, rotated);
            query = rotated;
        }
        for (int64_t at = 0; at < size; at += 4) {
            float *out = queries + at * rows + lane;
            out[0] = query[at] * scale, out[rows] = query[at + 1] * scale;
            out[2 * rows] = query[at + 2] * scale, out[3 * rows] = query[at + 3] * scale;
        }
        for (int64_t at = 0; scales && at < size; at++) queries[at * rows + lane] *= scales[at];
    }
}

/* `count` entries of a cache from slot `first` on, as floats [count][size] without their scales. */
static const float *entries(const attention_work *work, const void *cache, int64_t head, int64_t first, int64_t count,
                            float *room) {
    int64_t at = (head * work->slots + first) * work->size;
    if (!work->key_scales) return (const float *)cache + at;
    const int8_t *codes = (const int8_t *)cache + at;
    for (int64_t index = 0; index < count * work->size; index++) room[index] = (float)codes[index];
    return room;
}

typedef struct {
    float *queries, *mixed, *largest, *total, *scores;
    int64_t row;
    int rows;
} tile;

static inline tile tile_at(const attention_work *work, float *piece, int64_t first_row, int rows, int index) {
    int64_t size = work->size;
    float *begin = piece + index * rows * row_floats(work), *mixed = begin + size * rows, *largest = mixed + size * rows;
    return (tile){begin, mixed, largest, largest + rows, largest + 2 * rows, first_row + index * rows, rows};
}

/* Scores of keys that a row does not see become NEVER. */
static void hide(const attention_work *work, const tile *one, int64_t first, int64_t count) {
    int64_t group = group_of(work), last_row = rows_of(work) - 1;
    for (int lane = 0; lane < one->rows; lane++) {
        int64_t position = (one->row + lane < last_row ? one->row + lane : last_row) / group;
        int64_t begin = first_key(work, position) - first, end = work->past + position + 1 - first;
        for (int64_t key = 0; key < count; key++)
            if (key < begin || key >= end) one->scores[key * one->rows + lane] = NEVER;
    }
}

static inline void score_tile(const attention_work *work, const tile *one, const float *keys, int64_t first,
                              int64_t count, const int parts) {
    for (int64_t key = 0; key < count; key += AT_ONCE) {
        const float *pointers[AT_ONCE];
        for (int index = 0; index < AT_ONCE; index++)
            pointers[index] = keys + (key + index < count ? key + index : count - 1) * work->size;
        score_keys(one->queries, pointers, work->size, parts, one->scores + key * parts * LANES);
    }
    int64_t group = group_of(work), last_row = rows_of(work) - 1;
    int64_t last = one->row + one->rows - 1 < last_row ? one->row + one->rows - 1 : last_row;
    if (first < first_key(work, last / group) || first + count > work->past + one->row / group + 1)
        hide(work, one, first, count);
}

/* A cache beyond the core's own is read the faster the earlier it is asked for: measured on x86, and on no Arm board. */
ALWAYS_INLINE void fetch(const attention_work *work, const void *cache, int64_t slot, int64_t count) {
    int64_t element = work->key_scales ? 1 : sizeof(float), bytes = count * work->size * element;
    const char *at = (const char *)cache + slot * work->size * element;
    for (int64_t line = 0; LANES == 8 && line < bytes; line += 64) __builtin_prefetch(at + line);
}

/* The tiles of a piece over the keys from `first` to `end`. */
static inline void run_keys(const attention_work *work, const tile *tiles, int number, int64_t head, int64_t first,
                            int64_t end, float *room, const int parts) {
    for (; first < end; first += KEYS) {
        int64_t count = end - first < KEYS ? end - first : KEYS, size = work->size;
        float kept[MOST_TILES][MOST_ROWS];
        int64_t slot = head * work->slots + first;
        const float *keys = entries(work, work->keys, head, first, count, room);
        fetch(work, work->values, slot, count);
        for (int index = 0; index < number; index++) {
            const tile *one = tiles + index;
            score_tile(work, one, keys, first, count, parts);
            for (int at = 0; at < parts * LANES; at += LANES)
                soften(one->scores + at, count, parts * LANES, one->largest + at, one->total + at, kept[index] + at);
        }
        if (first + 2 * KEYS <= end) fetch(work, work->keys, slot + KEYS, KEYS);
        const float *values = entries(work, work->values, head, first, count, room);
        for (int index = 0; index < number; index++)
            for (int64_t at = 0; at < size; at += 8)
                mix_values(tiles[index].scores, values, count, size, at, kept[index], parts, tiles[index].mixed);
    }
}

/* Few rows: one new position whose queries are at most FEW a KV head. A tile would be half empty, so lanes are channels:
 * scores are dot products, of up to three rows with four keys at a time. Queries and scores are [row][...]. */
ALWAYS_INLINE void load_entry(const void *entries, int64_t at, const int quantized, floats out[EIGHT]) {
    if (quantized)
        load_codes((const int8_t *)entries + at, out);
    else
        load_eight((const float *)entries + at, out);
}

/* Scores [rows][KEYS] of four keys, whose elements begin at `keys`, with queries [rows][size]. */
ALWAYS_INLINE void dot_keys(const float *queries, const void *entries, const int64_t keys[4], int64_t size,
                            const int rows, const int quantized, float *scores) {
    floats sum[3][4][EIGHT];
#pragma GCC unroll 3
    for (int row = 0; row < rows; row++)
#pragma GCC unroll 4
        for (int key = 0; key < 4; key++)
            for (int part = 0; part < EIGHT; part++) sum[row][key][part] = same(0);
    for (int64_t at = 0; at < size; at += 8) {
        floats query[3][EIGHT];
#pragma GCC unroll 3
        for (int row = 0; row < rows; row++) load_eight(queries + row * size + at, query[row]);
#pragma GCC unroll 4
        for (int key = 0; key < 4; key++) {
            floats entry[EIGHT];
            load_entry(entries, keys[key] + at, quantized, entry);
#pragma GCC unroll 3
            for (int row = 0; row < rows; row++)
#pragma GCC unroll 2
                for (int part = 0; part < EIGHT; part++)
                    sum[row][key][part] = fused(query[row][part], entry[part], sum[row][key][part]);
        }
    }
#pragma GCC unroll 3
    for (int row = 0; row < rows; row++) store_sums((const floats(*)[EIGHT])sum[row], scores + row * KEYS);
}

/* rows x 8 * wide channels from `at` on of mixed [rows][size] = mixed * kept[row] + shares [rows][KEYS] x values */
ALWAYS_INLINE void mix_few(const float *shares, const void *entries, int64_t values, int64_t count, int64_t size,
                           int64_t at, const float *kept, const int rows, const int wide, const int quantized,
                           float *mixed) {
    floats sum[FEW][4][EIGHT];
#pragma GCC unroll 4
    for (int row = 0; row < rows; row++)
#pragma GCC unroll 4
        for (int eight = 0; eight < wide; eight++)
            for (int part = 0; part < EIGHT; part++)
                sum[row][eight][part] = load(mixed + row * size + at + eight * 8 + part * LANES) * same(kept[row]);
    for (int64_t key = 0; key < count; key++) {
        floats share[FEW];
#pragma GCC unroll 4
        for (int row = 0; row < rows; row++) share[row] = same(shares[row * KEYS + key]);
#pragma GCC unroll 4
        for (int eight = 0; eight < wide; eight++) {
            floats value[EIGHT];
            load_entry(entries, values + key * size + at + eight * 8, quantized, value);
#pragma GCC unroll 4
            for (int row = 0; row < rows; row++)
#pragma GCC unroll 2
                for (int part = 0; part < EIGHT; part++)
                    sum[row][eight][part] = fused(value[part], share[row], sum[row][eight][part]);
        }
    }
#pragma GCC unroll 4
    for (int row = 0; row < rows; row++)
#pragma GCC unroll 4
        for (int eight = 0; eight < wide; eight++)
            for (int part = 0; part < EIGHT; part++)
                store(mixed + row * size + at + eight * 8 + part * LANES, sum[row][eight][part]);
}

/* A row's scores [count], behind which there is room up to a multiple of eight, become 2^(score - largest). totals are
 * those of eight lanes. -> what earlier sums are multiplied with */
static __attribute__((noinline)) float soften_row(float *scores, int64_t count, float *largest, float totals[8]) {
    floats most[EIGHT], sum[EIGHT];
    for (int64_t at = count; at % 8; at++) scores[at] = NEVER;
    load_eight(scores, most);
    for (int64_t at = 8; at < count; at += 8)
        for (int part = 0; part < EIGHT; part++) most[part] = larger(most[part], load(scores + at + part * LANES));
    float lanes[8], before = *largest, top = before;
    for (int part = 0; part < EIGHT; part++) store(lanes + part * LANES, most[part]);
    for (int lane = 0; lane < 8; lane++) top = lanes[lane] > top ? lanes[lane] : top;
    store(lanes, power_of_two(same(before - top)));
    for (int part = 0; part < EIGHT; part++) sum[part] = load(totals + part * LANES) * same(lanes[0]);
    for (int64_t at = 0; at < count; at += 8)
        for (int part = 0; part < EIGHT; part++) {
            floats share = power_of_two(load(scores + at + part * LANES) - same(top));
            store(scores + at + part * LANES, share);
            sum[part] += share;
        }
    for (int part = 0; part < EIGHT; part++) store(totals + part * LANES, sum[part]);
    *largest = top;
    return lanes[0];
}

ALWAYS_INLINE void run_few(const attention_work *work, const tile *one, int64_t head, int64_t first, int64_t end,
                           const int rows, const int quantized) {
    int64_t size = work->size, slot = head * work->slots;
    const int wide = quantized || rows > 3 ? 2 : 4, pass = rows > 3 || (quantized && rows > 2) ? 2 : rows;
    float totals[FEW][8], kept[FEW];
    memset(totals, 0, sizeof totals);
    for (; first < end; first += KEYS) {
        int64_t count = end - first < KEYS ? end - first : KEYS, at = 0;
        for (int64_t key = 0; key < count; key += 4) {
            int64_t keys[4];
            for (int index = 0; index < 4; index++)
                keys[index] = (slot + first + (key + index < count ? key + index : count - 1)) * size;
            fetch(work, work->values, slot + first + key, 4);
            dot_keys(one->queries, work->keys, keys, size, pass, quantized, one->scores + key);
            if (rows > pass) /* what is left, so that nothing is kept on the stack */
                dot_keys(one->queries + pass * size, work->keys, keys, size, rows - pass, quantized,
                         one->scores + pass * KEYS + key);
        }
        for (int row = 0; row < rows; row++)
            kept[row] = soften_row(one->scores + row * KEYS, count, one->largest + row, totals[row]);
        if (first + 2 * KEYS <= end) fetch(work, work->keys, slot + first + KEYS, KEYS);
        int64_t values = (slot + first) * size;
        for (; at + 8 * wide <= size; at += 8 * wide)
            mix_few(one->scores, work->values, values, count, size, at, kept, rows, wide, quantized, one->mixed);
        for (; at < size; at += 8)
            mix_few(one->scores, work->values, values, count, size, at, kept, rows, 1, quantized, one->mixed);
    }
    for (int row = 0; row < rows; row++)
        for (int lane = 0; lane < 8; lane++) one->total[row] += totals[row][lane];
}

#define RUN_FEW(rows)                                                                                             \
    static void run_##rows(const attention_work *work, const tile *one, int64_t head, int64_t first, int64_t end) { \
        if (work->key_scales)                                                                                     \
            run_few(work, one, head, first, end, rows, 1);                                                        \
        else                                                                                                      \
            run_few(work, one, head, first, end, rows, 0);                                                        \
    }
RUN_FEW(1) RUN_FEW(2) RUN_FEW(3) RUN_FEW(4)
static void (*const RUN[FEW])(const attention_work *, const tile *, int64_t, int64_t, int64_t) = {
    run_1, run_2, run_3, run_4,
};

/* A piece of few rows; results lie as those of a tile. */
static void run_few_piece(void *given, size_t task) {
    const attention_work *work = given;
    int64_t shares = shares_of(work), head = (int64_t)task / shares, size = work->size;
    tile one = tile_at(work, work->scratch + (int64_t)task * piece_floats(work), 0, tile_rows(work), 0);
    pack_few(work, head, one.queries);
    memset(one.mixed, 0, sizeof(float) * group_of(work) * size);
    for (int row = 0; row < group_of(work); row++) one.largest[row] = NEVER, one.total[row] = 0;
    int64_t begin = first_key(work, 0), end = work->past + 1, per_share = (end - begin + shares - 1) / shares;
    int64_t first = begin + (int64_t)task % shares * per_share;
    RUN[group_of(work) - 1](work, &one, head, first, first + per_share < end ? first + per_share : end);
}

static void run_piece(void *given, size_t task) {
    const attention_work *work = given;
    int64_t shares = shares_of(work), pieces = row_pieces(work), share = (int64_t)task % shares;
    int64_t head = (int64_t)task / shares / pieces, row = (int64_t)task / shares % pieces * PIECE_ROWS;
    float *piece = work->scratch + (int64_t)task * piece_floats(work);
    int rows = tile_rows(work), number = 0;
    tile tiles[MOST_TILES];
    for (; number < PIECE_ROWS / rows && row + number * rows < rows_of(work); number++) {
        tile one = tiles[number] = tile_at(work, piece, row, rows, number);
        pack_queries(work, head, one.row, rows, one.queries, one.mixed);
        memset(one.mixed, 0, sizeof(float) * rows * work->size);
        for (int lane = 0; lane < rows; lane++) one.largest[lane] = NEVER, one.total[lane] = 0;
    }
    int64_t last_row = (row + PIECE_ROWS < rows_of(work) ? row + PIECE_ROWS : rows_of(work)) - 1;
    int64_t begin = first_key(work, row / group_of(work)), end = work->past + last_row / group_of(work) + 1;
    int64_t per_share = (end - begin + shares - 1) / shares, first = begin + share * per_share;
    float *room = piece + PIECE_ROWS * row_floats(work);
    if (first + per_share < end) end = first + per_share;
    if (rows == 4)
        run_keys(work, tiles, number, head, first, end, room, 4 / LANES);
    else
        run_keys(work, tiles, number, head, first, end, room, EIGHT);
}

/* The row's result: the shares' sums, each at its own largest score, brought to one and divided by the total. */
static void join_row(const attention_work *work, int64_t head, int64_t row) {
    int64_t shares = shares_of(work), size = work->size, group = group_of(work), piece = row / PIECE_ROWS;
    int rows = tile_rows(work), index = (int)(row % PIECE_ROWS / rows), lane = (int)(row % rows);
    float *first = work->scratch + (head * row_pieces(work) + piece) * shares * piece_floats(work);
    float *out = work->out + (row / group * work->heads + head * group + row % group) * size;
    float most = NEVER, total = 0;
    for (int64_t share = 0; share < shares; share++) {
        float here = tile_at(work, first + share * piece_floats(work), 0, rows, index).largest[lane];
        most = here > most ? here : most;
    }
    memset(out, 0, sizeof(float) * size);
    for (int64_t share = 0; share < shares; share++) {
        tile one = tile_at(work, first + share * piece_floats(work), 0, rows, index);
        float lanes[LANES], kept;
        store(lanes, power_of_two(same(one.largest[lane] - most)));
        kept = shares > 1 ? lanes[0] : 1.0f;
        total += one.total[lane] * kept;
        for (int64_t at = 0; at < size; at++) out[at] += one.mixed[lane * size + at] * kept;
    }
    const float *scales = work->value_scales ? work->value_scales + head * size : NULL;
    for (int64_t at = 0; at < size; at++) out[at] = out[at] / total * (scales ? scales[at] : 1.0f);
}

static void join_piece(void *given, size_t task) {
    const attention_work *work = given;
    int64_t pieces = row_pieces(work), head = (int64_t)task / pieces, row = (int64_t)task % pieces * PIECE_ROWS;
    for (int64_t index = row; index < row + PIECE_ROWS && index < rows_of(work); index++) join_row(work, head, index);
}

static void run_pieces(const attention_work *work, threads on) {
    size_t pieces = (size_t)(work->kv_heads * row_pieces(work));
    spread(on, is_few(work) ? run_few_piece : run_piece, pieces * (size_t)shares_of(work), (void *)work);
    spread((threads){NULL, NULL}, join_piece, pieces, (void *)work);
}

static void run_position(void *given, size_t position) {
    const attention_work *work = given;
    attention_work one = at_position(work, (int64_t)position), last = at_position(work, work->count - 1);
    one.scratch += (int64_t)position * attention_scratch(&last);
    run_pieces(&one, (threads){NULL, NULL});
}

void attention(const attention_work *work, threads on) {
    for (int64_t position = 0; position < work->count; position++) put_position(work, position, work->scratch);
    if (is_guessed(work))
        spread(on, run_position, (size_t)work->count, (void *)work);
    else
        run_pieces(work, on);
}
