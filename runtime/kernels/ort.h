/* What is used of ONNX Runtime's C interface, whose own header has 220 KB.
 *
 * Its table of functions only grows at its end, so a place in it holds from the version that brought it: 1.10 for all
 * but `parallel_for`, 1.17. The same is true of the fields of an operator; `version` says how many of them are there.
 */
#ifndef MERINO_ORT_H
#define MERINO_ORT_H
#include <stddef.h>
#include <stdint.h>

typedef struct OrtStatus OrtStatus;
typedef struct OrtValue OrtValue;
typedef struct OrtShape OrtShape;
typedef struct OrtDomain OrtDomain;
typedef struct OrtInfo OrtInfo;
typedef struct OrtContext OrtContext;
typedef struct OrtOptions OrtOptions;
typedef void *const *OrtTable; /* of functions */

typedef struct {
    OrtTable (*table)(uint32_t version); /* GetApi; NULL where it is older */
    const char *(*version)(void);        /* "1.23.2" */
} OrtBase;

enum { FLOATS = 1, BYTES = 2, SIGNED_BYTES = 3, INT32S = 6, INT64S = 7 }; /* ONNXTensorElementDataType */
enum { FAILED = 1, INVALID_ARGUMENT = 2 };                                 /* OrtErrorCode */
enum { OPTIONAL = 1 };                                                     /* OrtCustomOpInputOutputCharacteristic */

/* Place in the table, and type. */
#define CREATE_STATUS(t) ((OrtStatus * (*)(int, const char *))(t)[0])
#define TYPE_OF(t) ((OrtStatus * (*)(const OrtShape *, int *))(t)[60])
#define AXES_OF(t) ((OrtStatus * (*)(const OrtShape *, size_t *))(t)[61])
#define LENGTHS_OF(t) ((OrtStatus * (*)(const OrtShape *, int64_t *, size_t))(t)[62])
#define CREATE_DOMAIN(t) ((OrtStatus * (*)(const char *, OrtDomain **))(t)[26])
#define ADD_OPERATOR(t) ((OrtStatus * (*)(OrtDomain *, const Operator *))(t)[27])
#define ADD_DOMAIN(t) ((OrtStatus * (*)(OrtOptions *, OrtDomain *))(t)[28])
#define DATA_OF(t) ((OrtStatus * (*)(OrtValue *, void **))(t)[51])
#define SHAPE_OF(t) ((OrtStatus * (*)(const OrtValue *, OrtShape **))(t)[65])
#define FLOAT_ATTRIBUTE(t) ((OrtStatus * (*)(const OrtInfo *, const char *, float *))(t)[85])
#define INTEGER_ATTRIBUTE(t) ((OrtStatus * (*)(const OrtInfo *, const char *, int64_t *))(t)[86])
#define INPUT(t) ((OrtStatus * (*)(const OrtContext *, size_t, const OrtValue **))(t)[90])
#define OUTPUT(t) ((OrtStatus * (*)(OrtContext *, size_t, const int64_t *, size_t, OrtValue **))(t)[91])
#define RELEASE_STATUS(t) ((void (*)(OrtStatus *))(t)[93])
#define RELEASE_SHAPE(t) ((void (*)(OrtShape *))(t)[99])
#define PARALLEL_FOR(t) \
    ((OrtStatus * (*)(const OrtContext *, void (*)(void *, size_t), size_t, size_t, void *))(t)[274])

enum { FIRST_WITH_STATUS = 16, FIRST_WITH_PARALLEL_FOR = 17, OLDEST = 10 };

typedef struct Operator Operator;
struct Operator {
    uint32_t version;
    void *(*create)(const Operator *, OrtTable, const OrtInfo *); /* version 10 to 15 */
    const char *(*name)(const Operator *);
    const char *(*provider)(const Operator *); /* NULL: the CPU */
    int (*input_type)(const Operator *, size_t);
    size_t (*inputs)(const Operator *);
    int (*output_type)(const Operator *, size_t);
    size_t (*outputs)(const Operator *);
    void (*compute)(void *, OrtContext *); /* version 10 to 15 */
    void (*destroy)(void *);
    int (*input_kind)(const Operator *, size_t); /* 0: required */
    int (*output_kind)(const Operator *, size_t);
    /* version 16 */
    int (*input_memory)(const Operator *, size_t); /* 0: where the provider has it */
    int (*least_variadic_inputs)(const Operator *);
    int (*like_variadic_inputs)(const Operator *);
    int (*least_variadic_outputs)(const Operator *);
    int (*like_variadic_outputs)(const Operator *);
    OrtStatus *(*create_checked)(const Operator *, OrtTable, const OrtInfo *, void **);
    OrtStatus *(*compute_checked)(void *, OrtContext *);
    /* Of this project, behind what ONNX Runtime reads: */
    const char *own_name;
    int bits;
    const int *types; /* of the inputs, then of the outputs */
    size_t input_count, output_count;
};
#endif
