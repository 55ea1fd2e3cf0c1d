/* y = x W^T with W in 4, 5, 6 or 8 bits and x rounded to 8 bits in groups of 32, in 6 bits of 16. See matmul.h for
 * the layout. The work is cut into tasks here; the instruction sets multiply a tile.
 */
#include "matmul.h"
#include <string.h>
#include "instruction_set.h"

enum { TASK_BYTES = 32768 };

/* The fastest first. */
static const instruction_set *const SETS[] = {
#if defined(__aarch64__)
    &DOTPROD, &NEON,
#else
    &AVX512, &AVX2,
#endif
    &REFERENCE,
};

const instruction_set *instruction_set_named(const char *name) {
    for (size_t at = 0; at < sizeof SETS / sizeof *SETS; at++)
        if ((!name || !strcmp(SETS[at]->name, name)) && SETS[at]->is_supported()) return SETS[at];
    return NULL;
}

static int64_t tile_bytes(const matmul_work *work) {
    return work->columns / GROUP * group_bytes(work->bits, work->minimums);
}

static int64_t tiles_of(const matmul_work *work) { return (work->rows + TILE_ROWS - 1) / TILE_ROWS; }

static int64_t tiles_per_task(const matmul_work *work) {
    int64_t one = tile_bytes(work);
    return one < TASK_BYTES ? TASK_BYTES / one : 1;
}

/* Values of one row of x and one tile into y. The last tile of W may have fewer rows. */
static void put(const matmul_work *work, int64_t row, int64_t tile, const float *values) {
    int64_t first = tile * TILE_ROWS, left = work->rows - first;
    memcpy(work->y + row * work->rows + first, values, sizeof(float) * (size_t)(left < TILE_ROWS ? left : TILE_ROWS));
}

/* What is multiplied with a group of W's columns; `room` holds it if the channels have an order. */
static const float *channels_of(const matmul_work *work, const float *x, int64_t group, float room[GROUP]) {
    if (!work->order) return x + group * GROUP;
    const int32_t *order = work->order + group * GROUP;
    for (int at = 0; at < GROUP; at++) room[at] = (uint32_t)order[at] < (uint64_t)work->width ? x[order[at]] : 0.0f;
    return room;
}

/* Rounds 32 values, each sixteen by a scale of their own. */
static void round_halves(const instruction_set *set, const float *x, rounded *out) {
    float room[2][GROUP] = {{0}};
    rounded second;
    memcpy(room[0], x, sizeof(float) * GROUP / 2);
    memcpy(room[1] + GROUP / 2, x + GROUP / 2, sizeof(float) * GROUP / 2);
    set->round_group(room[0], out);
    set->round_group(room[1], &second);
    memcpy(out->codes + GROUP / 2, second.codes + GROUP / 2, GROUP / 2);
    out->scales[1] = second.scales[0];
    out->first_offset = out->offset;
    out->offset += second.offset;
}

/* Rows of x are rounded and multiplied in blocks of MOST_ROWS. In the scratch the rows of a block lie side by side. */
static int64_t block_of(const matmul_work *work, int64_t first) {
    return work->count - first < MOST_ROWS ? work->count - first : MOST_ROWS;
}

static void round_rows(void *given, size_t task) {
    const matmul_work *work = given;
    int64_t groups = work->columns / GROUP, first = (int64_t)task * SOME_ROWS;
    int64_t before = first / MOST_ROWS * MOST_ROWS, block = block_of(work, before);
    float room[GROUP];
    for (int64_t row = first; row < first + SOME_ROWS && row < work->count; row++)
        for (int64_t group = 0; group < groups; group++) {
            const float *x = channels_of(work, work->x + row * work->width, group, room);
            rounded *out = work->scratch + before * groups + group * block + row - before;
            if (parts_of(work->bits) == 1) {
                work->set->round_group(x, out);
            } else {
                round_halves(work->set, x, out);
                out->first_offset *= 1 << (work->bits - 4);
            }
            out->offset *= 1 << (work->bits - 4); /* that of 4 bits before */
        }
}

/* One tile of W with a block of x's rows, of which `first` is the first. */
static void multiply_rows(const matmul_work *work, int64_t tile, int64_t first) {
    multiply_tile *multiply = work->set->multiply[kind_of(work->bits, work->minimums)];
    const uint8_t *w = work->weights + tile * tile_bytes(work);
    int64_t groups = work->columns / GROUP, block = block_of(work, first);
    float out[MOST_ROWS][TILE_ROWS];
    for (int rows, row = 0; row < block; row += rows) {
        rows = block - row >= work->set->most_rows ? work->set->most_rows : block - row >= SOME_ROWS ? SOME_ROWS : 1;
        multiply(work->scratch + first * groups + row, block, w, groups, rows, out);
        for (int at = 0; at < rows; at++) put(work, first + row + at, tile, out[at]);
    }
}

/* Some tiles of W, few enough for a cache, with all rows of x. */
static void multiply_tiles(void *given, size_t task) {
    const matmul_work *work = given;
    int64_t some = tiles_per_task(work), tiles = tiles_of(work);
    int64_t first = (int64_t)task * some, last = first + some < tiles ? first + some : tiles;
    for (int64_t row = 0; row < work->count; row += MOST_ROWS)
        for (int64_t tile = first; tile < last; tile++) multiply_rows(work, tile, row);
}

void matmul(const matmul_work *given, threads on) {
    matmul_work work = *given;
    if (!work.set) work.set = instruction_set_named(NULL);
    int64_t tiles = tiles_of(&work), some = tiles_per_task(&work);
    spread(on, round_rows, (size_t)((work.count + SOME_ROWS - 1) / SOME_ROWS), &work);
    spread(on, multiply_tiles, (size_t)((tiles + some - 1) / some), &work);
}
