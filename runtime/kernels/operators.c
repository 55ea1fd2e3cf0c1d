/* The operators of domain `merino` for ONNX Runtime 1.10 and later: attributes and shapes checked, kernels called.
 *
 *   MatMul4          x float [..., columns], weights uint8 (matmul.h)                -> float [..., rows]
 *   Rows4            weights uint8, ids int64 [...]                                  -> float [..., columns]
 *   MatMul5, Rows5, MatMul6, Rows6, MatMul8, Rows8   the same in 5, 6 and 8 bits; in 6 without minimums
 *   GroupAttention   qkv float [B, T, (heads + 2 kv_heads) * size], past_key, past_value float [B, kv_heads, slots,
 *                    size], last int32 [B] (position of each one's last new id), cos, sin float [positions, size / 2]
 *                                                   -> float [B, T, heads * size], present_key, present_value
 *   GroupAttention8  the same over a cache in int8; two inputs more: its scales float [1, kv_heads, 1, size]
 *
 *   Taps             x float [B, T, width] or gated [B, T, 3 width], past_key, past_value float [B, 1, slots, width / 2],
 *                    last int32 [B], weights float [taps, 1, width]
 *                                                   -> float [B, T, width], present_key, present_value
 *
 * Past and present may be one buffer; if they are not, the past is copied. Errors are returned as an OrtStatus. ONNX
 * Runtime before 1.16 cannot return a status from a kernel; there the output is NaN, which the runtime reports. So a
 * kernel checks its inputs before it allocates an output: a second allocation of another shape ends the process there.
 */
#pragma GCC optimize("Os") /* nothing here is hot, and boards carry these bytes */
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "attention.h"
#include "matmul.h"
#include "ort.h"
#include "pool.h"
#include "taps.h"

#define EXPORTED __attribute__((visibility("default")))
enum { MOST_AXES = 8, SPARES = 4, MOST_SEQUENCES = 256, STEP_ROWS = 8 /* of x in a decode step, by sequences */ };

static OrtTable ort;
static int ort_minor;

static OrtStatus *status(int code, const char *text) { return CREATE_STATUS(ort)(code, text); }
#define WRONG(text) return status(INVALID_ARGUMENT, "merino kernels: " text)
#define TRY(call)                            \
    do {                                     \
        OrtStatus *tried = (call);           \
        if (tried) return tried;             \
    } while (0)

/* Memory of one call, kept for the next: there is an allocation only where more is needed than ever before, or where
 * more than SPARES calls run at once. */
typedef struct {
    size_t bytes;
    size_t unused[7]; /* what follows begins a cache line */
} room;
static _Atomic(room *) spares[SPARES];

static void *take_room(size_t bytes) {
    room *spare = NULL;
    for (int at = 0; at < SPARES && !spare; at++) spare = atomic_exchange(&spares[at], NULL);
    if (spare && spare->bytes >= bytes) return spare + 1;
    free(spare);
    if (bytes > SIZE_MAX / 2) return NULL;
    spare = aligned_alloc(64, (sizeof(room) + bytes + 63) / 64 * 64);
    if (!spare) return NULL;
    spare->bytes = bytes;
    return spare + 1;
}

static void give_room(void *memory) {
    room *one = (room *)memory - 1;
    for (int at = 0; at < SPARES && one; at++) one = atomic_exchange(&spares[at], one);
    free(one);
}

/* The session's threads, of which a call takes at most `most`; 0: all. */
typedef struct {
    const OrtContext *context;
    size_t most;
} lent;

static void run_parallel(const void *given, task_function *function, size_t count, void *work) {
    const lent *pool = given;
    if (ort_minor >= FIRST_WITH_PARALLEL_FOR) {
        OrtStatus *failed = PARALLEL_FOR(ort)(pool->context, function, count, pool->most, work);
        if (!failed) return;
        RELEASE_STATUS(ort)(failed);
        for (size_t task = 0; task < count; task++) function(work, task);
        return;
    }
    pool_run(function, count, work);
}

/* Of the calls of ONNX Runtime before 1.17; later ones use its threads. */
EXPORTED void merino_threads(int count) { pool_threads(count); }

/* Threads of a decode step in sessions that are opened from now on; 0: all of the session's. Prefill takes all of them,
 * and so many readers would only hinder each other in a step, which waits for memory. */
static atomic_int step_threads;
EXPORTED void merino_step_threads(int count) { atomic_store(&step_threads, count); }

typedef struct {
    void *data;
    int64_t lengths[MOST_AXES], elements;
    size_t axes;
} tensor;

static OrtStatus *shape_of(const OrtValue *value, tensor *out) {
    OrtShape *shape = NULL;
    TRY(SHAPE_OF(ort)(value, &shape));
    OrtStatus *failed = AXES_OF(ort)(shape, &out->axes);
    if (!failed && out->axes > MOST_AXES) failed = status(INVALID_ARGUMENT, "merino kernels: a tensor of over 8 axes");
    if (!failed) failed = LENGTHS_OF(ort)(shape, out->lengths, out->axes);
    RELEASE_SHAPE(ort)(shape);
    out->elements = 1;
    for (size_t axis = 0; !failed && axis < out->axes; axis++)
        if (__builtin_mul_overflow(out->elements, out->lengths[axis], &out->elements))
            failed = status(INVALID_ARGUMENT, "merino kernels: a tensor of over 2^63 elements");
    return failed;
}

static OrtStatus *input(const OrtContext *context, size_t index, tensor *out) {
    const OrtValue *value = NULL;
    TRY(INPUT(ort)(context, index, &value));
    if (!value) WRONG("an input is missing");
    TRY(shape_of(value, out));
    return DATA_OF(ort)((OrtValue *)value, &out->data);
}

static OrtStatus *output(OrtContext *context, size_t index, const int64_t *lengths, size_t axes, void **data) {
    OrtValue *value = NULL;
    TRY(OUTPUT(ort)(context, index, lengths, axes, &value));
    if (!value) WRONG("an output is missing");
    return DATA_OF(ort)(value, data);
}

/* Each kernel's attributes; what an operator has not is 0. */
typedef struct {
    const Operator *operator;
    int64_t columns, rows, minimums, heads, kv_heads, window, rotary, gated;
    float scale;
    size_t step_threads; /* 0: all of the session's */
} kernel;

static OrtStatus *weights_of(const kernel *one, const OrtContext *context, size_t index, tensor *weights) {
    int64_t bytes = group_bytes(one->operator->bits, one->minimums != 0), expected;
    TRY(input(context, index, weights));
    int64_t tiles = one->rows / TILE_ROWS + (one->rows % TILE_ROWS != 0);
    if (__builtin_mul_overflow(tiles, one->columns / GROUP, &expected) ||
        __builtin_mul_overflow(expected, bytes, &expected) || weights->elements != expected)
        WRONG("the weights have another size than rows and columns give");
    return NULL;
}

/* The third input, if it is there: int32 [columns]. */
static OrtStatus *order_of(const OrtContext *context, matmul_work *work) {
    const OrtValue *value = NULL;
    tensor order;
    TRY(INPUT(ort)(context, 2, &value));
    if (!value) return NULL;
    TRY(input(context, 2, &order));
    if (order.elements != work->columns) WRONG("the order is not one integer for each column");
    work->order = order.data;
    return NULL;
}

static OrtStatus *compute_matmul(const kernel *one, OrtContext *context) {
    matmul_work work = {.columns = one->columns, .rows = one->rows, .bits = one->operator->bits,
                        .minimums = one->minimums != 0};
    tensor x, weights;
    void *y, *scratch;
    TRY(input(context, 0, &x));
    TRY(weights_of(one, context, 1, &weights));
    work.x = x.data, work.weights = weights.data, work.width = x.axes ? x.lengths[x.axes - 1] : 0;
    TRY(order_of(context, &work));
    if (!work.width || (!work.order && work.width != one->columns)) WRONG("x has other columns than the weights");
    work.count = x.elements / work.width;
    x.lengths[x.axes - 1] = one->rows;
    TRY(output(context, 0, x.lengths, x.axes, &y));
    work.y = y;
    if (!work.count) return NULL;
    scratch = take_room((size_t)(work.count * (one->columns / GROUP)) * sizeof(rounded));
    if (!scratch) return status(FAILED, "merino kernels: out of memory");
    work.scratch = scratch;
    matmul(&work, (threads){run_parallel, &(lent){context, work.count <= STEP_ROWS ? one->step_threads : 0}});
    give_room(scratch);
    return NULL;
}

static OrtStatus *compute_rows(const kernel *one, OrtContext *context) {
    tensor ids, weights;
    void *out;
    TRY(weights_of(one, context, 0, &weights));
    TRY(input(context, 1, &ids));
    if (ids.axes == MOST_AXES) WRONG("ids of 8 axes");
    for (int64_t at = 0; at < ids.elements; at++) {
        int64_t id = ((const int64_t *)ids.data)[at];
        if (id < 0 || id >= one->rows) WRONG("an id is outside of the table");
    }
    ids.lengths[ids.axes] = one->columns;
    TRY(output(context, 0, ids.lengths, ids.axes + 1, &out));
    for (int64_t at = 0; at < ids.elements; at++)
        matmul_row(weights.data, one->columns, one->operator->bits, one->minimums != 0, ((const int64_t *)ids.data)[at],
                   (float *)out + at * one->columns);
    return NULL;
}

/* The output that a cache becomes, holding each sequence's past. */
static OrtStatus *present(OrtContext *context, size_t index, const tensor *past, const int64_t *filled, int64_t slots,
                          size_t element, void **data) {
    int64_t lengths[4] = {past->lengths[0], past->lengths[1], slots, past->lengths[3]};
    TRY(output(context, index, lengths, 4, data));
    if (*data == past->data) return NULL;
    size_t entry = element * (size_t)past->lengths[3];
    if (!past->elements) return NULL; /* memcpy does not accept NULL, the address of an empty tensor */
    for (int64_t head = 0; head < past->lengths[0] * past->lengths[1]; head++)
        memcpy((char *)*data + (size_t)(head * slots) * entry,
               (const char *)past->data + (size_t)(head * past->lengths[2]) * entry,
               (size_t)filled[head / past->lengths[1]] * entry);
    return NULL;
}

/* How many entries of each sequence lie before the new ones, and the slots that hold all. */
static OrtStatus *entries_of(const OrtContext *context, size_t index, const tensor *past, int64_t count,
                             int64_t filled[MOST_SEQUENCES], int64_t *slots) {
    tensor last;
    TRY(input(context, index, &last));
    if (last.elements != past->lengths[0]) WRONG("last is not one integer for each sequence");
    if (last.elements > MOST_SEQUENCES) WRONG("there are more than 256 sequences");
    *slots = past->lengths[2];
    for (int64_t at = 0; at < last.elements; at++) {
        filled[at] = (int64_t)((const int32_t *)last.data)[at] + 1 - count;
        if (filled[at] < 0 || filled[at] > past->lengths[2]) WRONG("fewer entries are cached than `last` says");
        if (filled[at] + count > *slots) *slots = filled[at] + count;
    }
    return NULL;
}

static OrtStatus *attention_inputs(const kernel *one, const OrtContext *context, attention_work *work, tensor past[2],
                                   int64_t filled[MOST_SEQUENCES]) {
    tensor qkv, cos, sin, scales[2];
    TRY(input(context, 0, &qkv));
    for (size_t index = 0; index < 2; index++) {
        TRY(input(context, 1 + index, &past[index]));
        if (past[index].axes != 4 || past[index].lengths[1] != one->kv_heads)
            WRONG("a cache is not [B, kv_heads, slots, size]");
    }
    if (memcmp(past[0].lengths, past[1].lengths, sizeof(int64_t) * 4)) WRONG("keys and values differ in shape");
    TRY(input(context, 4, &cos));
    TRY(input(context, 5, &sin));
    work->size = past[0].lengths[3];
    if (work->size < 8 || work->size % 8 || work->size > 65536) WRONG("heads are of a multiple of 8 channels");
    if (qkv.axes != 3 || qkv.lengths[0] != past[0].lengths[0] ||
        qkv.lengths[2] != (one->heads + 2 * one->kv_heads) * work->size)
        WRONG("qkv is not [B, T, (heads + 2 kv_heads) * size]");
    work->qkv = qkv.data, work->count = qkv.lengths[1];
    TRY(entries_of(context, 3, &past[0], work->count, filled, &work->slots));
    int64_t most = 0;
    for (int64_t index = 0; index < qkv.lengths[0]; index++)
        if (filled[index] + work->count > most) most = filled[index] + work->count;
    if (one->rotary) {
        int64_t least = most * (work->size / 2);
        if (cos.elements < least || sin.elements < least) WRONG("there are more positions than angles");
        work->cos = cos.data, work->sin = sin.data;
    }
    if (one->operator->input_count < 8) return NULL;
    for (size_t index = 0; index < 2; index++) {
        TRY(input(context, 6 + index, &scales[index]));
        if (scales[index].elements != one->kv_heads * work->size) WRONG("the cache's scales are not one for a channel");
    }
    work->key_scales = scales[0].data, work->value_scales = scales[1].data;
    return NULL;
}

static OrtStatus *compute_attention(const kernel *one, OrtContext *context) {
    attention_work work = {.heads = one->heads, .kv_heads = one->kv_heads, .window = one->window, .scale = one->scale};
    tensor past[2];
    void *out;
    int64_t filled[MOST_SEQUENCES];
    TRY(attention_inputs(one, context, &work, past, filled));
    int64_t sequences = past[0].lengths[0], lengths[3] = {sequences, work.count, one->heads * work.size};
    size_t element = work.key_scales ? sizeof(int8_t) : sizeof(float);
    size_t cache = element * (size_t)(one->kv_heads * work.slots * work.size);
    TRY(output(context, 0, lengths, 3, &out));
    TRY(present(context, 1, &past[0], filled, work.slots, element, &work.keys));
    TRY(present(context, 2, &past[1], filled, work.slots, element, &work.values));
    if (!work.count) return NULL;
    work.out = out;
    for (int64_t index = 0; index < sequences; index++) {
        work.past = filled[index];
        work.scratch = take_room((size_t)attention_scratch(&work) * sizeof(float));
        if (!work.scratch) return status(FAILED, "merino kernels: out of memory");
        attention(&work, (threads){run_parallel, &(lent){context, work.count == 1 ? one->step_threads : 0}});
        give_room(work.scratch);
        work.qkv += work.count * (one->heads + 2 * one->kv_heads) * work.size;
        work.out += work.count * one->heads * work.size;
        work.keys = (char *)work.keys + cache, work.values = (char *)work.values + cache;
    }
    return NULL;
}

static OrtStatus *compute_taps(const kernel *one, OrtContext *context) {
    taps_work work = {.gated = one->gated != 0};
    tensor x, past[2], weights;
    void *out, *caches[2];
    int64_t filled[MOST_SEQUENCES], slots;
    TRY(input(context, 0, &x));
    TRY(input(context, 4, &weights));
    for (size_t index = 0; index < 2; index++) {
        TRY(input(context, 1 + index, &past[index]));
        if (past[index].axes != 4 || past[index].lengths[1] != 1) WRONG("a cache is not [B, kv_heads, slots, size]");
    }
    if (memcmp(past[0].lengths, past[1].lengths, sizeof(int64_t) * 4)) WRONG("keys and values differ in shape");
    work.width = 2 * past[0].lengths[3];
    if (x.axes != 3 || x.lengths[0] != past[0].lengths[0] || x.lengths[2] != work.width * (work.gated ? 3 : 1))
        WRONG("x is not [B, T, width]");
    if (!work.width || weights.axes != 3 || weights.lengths[2] != work.width) WRONG("weights are not [taps, 1, width]");
    work.taps = weights.elements / work.width, work.count = x.lengths[1];
    TRY(entries_of(context, 3, &past[0], work.count, filled, &slots));
    int64_t sequences = x.lengths[0], lengths[3] = {sequences, work.count, work.width};
    TRY(output(context, 0, lengths, 3, &out));
    for (size_t index = 0; index < 2; index++)
        TRY(present(context, 1 + index, &past[index], filled, slots, sizeof(float), &caches[index]));
    work.x = x.data, work.weights = weights.data, work.out = out, work.keys = caches[0], work.values = caches[1];
    for (int64_t index = 0; index < sequences; index++) {
        work.past = filled[index];
        causal_taps(&work);
        work.x += work.count * x.lengths[2], work.out += work.count * work.width;
        work.keys += slots * work.width / 2, work.values += slots * work.width / 2;
    }
    return NULL;
}

typedef OrtStatus *compute_kernel(const kernel *, OrtContext *);

static OrtStatus *integer(const OrtInfo *info, const char *name, int64_t least, int64_t *out) {
    TRY(INTEGER_ATTRIBUTE(ort)(info, name, out));
    if (*out < least || *out > INT32_MAX) WRONG("an attribute is out of range");
    return NULL;
}

static OrtStatus *read_attributes(kernel *one, const OrtInfo *info) {
    if (!strcmp(one->operator->own_name, "Taps")) return integer(info, "gated", 0, &one->gated);
    if (strncmp(one->operator->own_name, "Group", 5)) {
        TRY(integer(info, "columns", GROUP, &one->columns));
        TRY(integer(info, "rows", 1, &one->rows));
        TRY(integer(info, "minimums", 0, &one->minimums));
        if (one->columns % GROUP) WRONG("columns are a multiple of 32");
        if (one->operator->bits == 6 && one->minimums) WRONG("there are no minimums in 6 bits");
        return NULL;
    }
    TRY(integer(info, "heads", 1, &one->heads));
    TRY(integer(info, "kv_heads", 1, &one->kv_heads));
    TRY(integer(info, "window", 0, &one->window));
    TRY(integer(info, "rotary", 0, &one->rotary));
    TRY(FLOAT_ATTRIBUTE(ort)(info, "scale", &one->scale));
    if (one->heads % one->kv_heads || one->heads > 65536) WRONG("kv_heads do not divide heads");
    return NULL;
}

static OrtStatus *create_checked(const Operator *operator, OrtTable table, const OrtInfo *info, void **out) {
    (void)table;
    kernel *one = calloc(1, sizeof *one);
    if (!one) return status(FAILED, "merino kernels: out of memory");
    one->operator = operator, one->step_threads = (size_t)atomic_load(&step_threads);
    OrtStatus *failed = read_attributes(one, info);
    if (failed) {
        free(one);
        return failed;
    }
    *out = one;
    return NULL;
}

static compute_kernel *const KERNELS[] = {compute_matmul, compute_rows, compute_matmul, compute_rows,      compute_matmul,
                                          compute_rows,   compute_matmul, compute_rows, compute_attention, compute_attention,
                                          compute_taps};
enum { OPERATORS = sizeof KERNELS / sizeof *KERNELS };
static Operator operators[OPERATORS];

static OrtStatus *compute_checked(void *given, OrtContext *context) {
    const kernel *one = given;
    return KERNELS[one->operator - operators](one, context);
}

/* Before 1.16: no status is taken, so a fault becomes a result that is not a number, or none at all. */
static void *create(const Operator *operator, OrtTable table, const OrtInfo *info) {
    void *one = NULL;
    OrtStatus *failed = create_checked(operator, table, info, &one);
    if (failed) RELEASE_STATUS(ort)(failed);
    return one; /* NULL: compute says so */
}

static void compute(void *given, OrtContext *context) {
    OrtStatus *failed = given ? compute_checked(given, context) : status(FAILED, "");
    if (!failed) return;
    RELEASE_STATUS(ort)(failed);
    int64_t lengths[3] = {1, 1, 1};
    void *out = NULL;
    failed = output(context, 0, lengths, 3, &out);
    if (failed)
        RELEASE_STATUS(ort)(failed);
    else
        *(float *)out = NAN;
}

static const char *name(const Operator *one) { return one->own_name; }
static const char *provider(const Operator *one) { return (void)one, NULL; }
static int input_type(const Operator *one, size_t index) { return one->types[index]; }
static size_t inputs(const Operator *one) { return one->input_count; }
static int output_type(const Operator *one, size_t index) { return one->types[one->input_count + index]; }
static size_t outputs(const Operator *one) { return one->output_count; }
static int zero_of(const Operator *one, size_t index) { return (void)one, (void)index, 0; }
static int zero(const Operator *one) { return (void)one, 0; }

static const int MATMUL[] = {FLOATS, BYTES, INT32S, FLOATS}, ROWS[] = {BYTES, INT64S, FLOATS};
static const int ATTENTION[] = {FLOATS, FLOATS, FLOATS, INT32S, FLOATS, FLOATS, FLOATS, FLOATS, FLOATS};
static const int ATTENTION8[] = {FLOATS, SIGNED_BYTES, SIGNED_BYTES, INT32S, FLOATS, FLOATS,
                                 FLOATS, FLOATS,       FLOATS,       SIGNED_BYTES, SIGNED_BYTES};

static const int TAPS[] = {FLOATS, FLOATS, FLOATS, INT32S, FLOATS, FLOATS, FLOATS, FLOATS};

static int input_kind(const Operator *one, size_t index) { return one->types == MATMUL && index == 2 ? OPTIONAL : 0; }

static Operator operator_of(const char *own_name, int bits, const int *types, size_t input_count, size_t output_count) {
    return (Operator){
        .version = ort_minor >= FIRST_WITH_STATUS ? FIRST_WITH_STATUS : OLDEST,
        .create = create, .name = name, .provider = provider, .input_type = input_type, .inputs = inputs,
        .output_type = output_type, .outputs = outputs, .compute = compute, .destroy = free, .input_kind = input_kind,
        .output_kind = zero_of, .input_memory = zero_of, .least_variadic_inputs = zero, .like_variadic_inputs = zero,
        .least_variadic_outputs = zero, .like_variadic_outputs = zero, .create_checked = create_checked,
        .compute_checked = compute_checked, .own_name = own_name, .bits = bits, .types = types, .input_count = input_count,
        .output_count = output_count,
    };
}

static int minor_version(const char *text) {
    int major = 0, minor = 0;
    return text && sscanf(text, "%d.%d", &major, &minor) == 2 && major == 1 ? minor : major > 1 ? 1000 : 0;
}

static void fill_operators(void) {
    operators[0] = operator_of("MatMul4", 4, MATMUL, 3, 1);
    operators[1] = operator_of("Rows4", 4, ROWS, 2, 1);
    operators[2] = operator_of("MatMul5", 5, MATMUL, 3, 1);
    operators[3] = operator_of("Rows5", 5, ROWS, 2, 1);
    operators[4] = operator_of("MatMul6", 6, MATMUL, 3, 1);
    operators[5] = operator_of("Rows6", 6, ROWS, 2, 1);
    operators[6] = operator_of("MatMul8", 8, MATMUL, 3, 1);
    operators[7] = operator_of("Rows8", 8, ROWS, 2, 1);
    operators[8] = operator_of("GroupAttention", 32, ATTENTION, 6, 3);
    operators[9] = operator_of("GroupAttention8", 8, ATTENTION8, 8, 3);
    operators[10] = operator_of("Taps", 32, TAPS, 5, 3);
}

EXPORTED OrtStatus *RegisterCustomOps(OrtOptions *options, const OrtBase *base) {
    static OrtDomain *domain; /* of the process: sessions keep pointers to it */
    if (!domain) {
        ort_minor = minor_version(base->version());
        ort = base->table(ort_minor >= FIRST_WITH_PARALLEL_FOR ? FIRST_WITH_PARALLEL_FOR : OLDEST);
        if (!ort) return NULL; /* older than 1.10: no operator is there, and the session says so */
#if defined(__x86_64__)
        if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c"))
            return status(FAILED, "merino kernels: this CPU has no AVX2");
#endif
        fill_operators();
        OrtDomain *made = NULL;
        TRY(CREATE_DOMAIN(ort)("merino", &made));
        for (int at = 0; at < OPERATORS; at++) TRY(ADD_OPERATOR(ort)(made, &operators[at]));
        domain = made;
    }
    return ADD_DOMAIN(ort)(options, domain);
}
