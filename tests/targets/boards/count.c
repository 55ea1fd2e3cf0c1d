/* A plugin of QEMU's user-mode emulation that counts guest instructions: at each getsid(2) of arm64 (system call 156)
 * it writes how many were executed so far, one number a line, to the file of its argument out=FILE.
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
extern struct qemu_plugin_scoreboard *qemu_plugin_scoreboard_new(size_t);
extern uint64_t qemu_plugin_u64_sum(counter_type);
extern void qemu_plugin_register_vcpu_tb_trans_cb(id_type, void (*)(id_type, struct qemu_plugin_tb *));
extern void qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(struct qemu_plugin_tb *, int, counter_type, uint64_t);
typedef void on_call(id_type, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                     uint64_t);
extern void qemu_plugin_register_vcpu_syscall_cb(id_type, on_call *);

#define EXPORT __attribute__((visibility("default")))
EXPORT int qemu_plugin_version = 4;
enum { GETSID = 156 };
static counter_type executed;
static FILE *out;

static void translated(id_type id, struct qemu_plugin_tb *block) {
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(block, ADD, executed, qemu_plugin_tb_n_insns(block));
}

static void called(id_type id, unsigned cpu, int64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e,
                   uint64_t f, uint64_t g, uint64_t h) {
    (void)id, (void)cpu, (void)a, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
    if (number == GETSID) {
        fprintf(out, "%llu\n", (unsigned long long)qemu_plugin_u64_sum(executed));
        fflush(out);
    }
}

EXPORT int qemu_plugin_install(id_type id, const void *info, int count, char **arguments) {
    (void)info;
    for (int at = 0; at < count; at++)
        if (!strncmp(arguments[at], "out=", 4)) out = fopen(arguments[at] + 4, "w");
    if (!out) return 1;
    executed.score = qemu_plugin_scoreboard_new(sizeof(uint64_t));
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
