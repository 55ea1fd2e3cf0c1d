/* A plugin of QEMU's user-mode emulation that counts guest instructions: at each getsid(2) of arm64 (system call 156)
 * it writes how many were executed so far, one number a line, to the file of its argument out=FILE. With places=FILE
 * it writes there, after an empty line, what each 64 bytes of code have executed since the getsid before: address and
 * count.
 *
 * Declared here is what it uses of the interface of version 4 (QEMU 9.0 and later; docs/devel/tcg-plugins), since
 * distributions ship no header: cc -shared -fPIC -O2 -o count.so count.c
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef uint64_t id_type;
struct qemu_plugin_tb;
struct qemu_plugin_scoreboard;
typedef struct {
    struct qemu_plugin_scoreboard *score;
    size_t offset;
} counter_type;
enum { ADD = 0 };

extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
extern struct qemu_plugin_scoreboard *qemu_plugin_scoreboard_new(size_t);
extern uint64_t qemu_plugin_u64_sum(counter_type);
extern void qemu_plugin_register_vcpu_tb_trans_cb(id_type, void (*)(id_type, struct qemu_plugin_tb *));
extern void qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(struct qemu_plugin_tb *, int, counter_type, uint64_t);
typedef void on_call(id_type, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                     uint64_t);
extern void qemu_plugin_register_vcpu_syscall_cb(id_type, on_call *);

#define EXPORT __attribute__((visibility("default")))
EXPORT int qemu_plugin_version = 4;
enum { GETSID = 156, PLACES = 1 << 17, PLACE_BYTES = 64 };
static counter_type executed;
static FILE *out, *places_file;
static uint64_t places[PLACES], before[PLACES]; /* address + 1, 0: free; counts at the last getsid */

static counter_type place_of(uint64_t address) {
    uint64_t key = address / PLACE_BYTES * PLACE_BYTES + 1, at = key / PLACE_BYTES * 0x9e3779b97f4a7c15u >> 47;
    for (int tries = 0; tries < PLACES && places[at] && places[at] != key; tries++) at = (at + 1) % PLACES;
    places[at] = key; /* a full table, which no program here has, would be wrong counts */
    return (counter_type){executed.score, sizeof(uint64_t) * (1 + at)};
}

static void translated(id_type id, struct qemu_plugin_tb *block) {
    (void)id;
    uint64_t count = qemu_plugin_tb_n_insns(block);
    qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(block, ADD, executed, count);
    if (places_file)
        qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(block, ADD, place_of(qemu_plugin_tb_vaddr(block)), count);
}

static void write_places(void) {
    fputc('\n', places_file);
    for (size_t at = 0; at < PLACES; at++) {
        counter_type counter = {executed.score, sizeof(uint64_t) * (1 + at)};
        uint64_t now = places[at] ? qemu_plugin_u64_sum(counter) : 0;
        if (now > before[at])
            fprintf(places_file, "%llx %llu\n", places[at] - 1ull, (unsigned long long)(now - before[at]));
        before[at] = now;
    }
    fflush(places_file);
}

static void called(id_type id, unsigned cpu, int64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e,
                   uint64_t f, uint64_t g, uint64_t h) {
    (void)id, (void)cpu, (void)a, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
    if (number == GETSID) {
        fprintf(out, "%llu\n", (unsigned long long)qemu_plugin_u64_sum(executed));
        fflush(out);
        if (places_file) write_places();
    }
}

EXPORT int qemu_plugin_install(id_type id, const void *info, int count, char **arguments) {
    (void)info;
    for (int at = 0; at < count; at++)
        if (!strncmp(arguments[at], "out=", 4))
            out = fopen(arguments[at] + 4, "w");
        else if (!strncmp(arguments[at], "places=", 7))
            places_file = fopen(arguments[at] + 7, "w");
    if (!out) return 1;
    executed.score = qemu_plugin_scoreboard_new(sizeof(uint64_t) * (places_file ? 1 + PLACES : 1));
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
