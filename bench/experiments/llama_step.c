/* Decode steps of llama.cpp on one thread, for counting instructions under emulation:
 *
 *   llama_step MODEL STATE CACHE   MODEL, STATE: files; of the filled cache, which another CPU may have written; CACHE:
 *                                  the number of a ggml_type
 *
 * Calls getsid(0), at which the emulator's plugin notes its count, around each of the steps.
 */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include "llama.h"

enum { CONTEXT = 1152, STEPS = 3 };

static void quiet(enum ggml_log_level level, const char *text, void *unused) { (void)level, (void)text, (void)unused; }

int main(int count, char **words) {
    static llama_token ids[CONTEXT];
    size_t past = 0;
    if (count != 4) return 2;
    llama_log_set(quiet, NULL);
    llama_backend_init();
    struct llama_model *model = llama_model_load_from_file(words[1], llama_model_default_params());
    struct llama_context_params options = llama_context_default_params();
    options.n_ctx = CONTEXT, options.n_threads = options.n_threads_batch = 1;
    options.type_k = options.type_v = (enum ggml_type)atoi(words[3]);
    options.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    struct llama_context *context = model ? llama_init_from_model(model, options) : NULL;
    if (!context || !llama_state_load_file(context, words[2], ids, CONTEXT, &past)) return 1;
    getsid(0);
    for (int step = 0; step < STEPS; step++) {
        llama_token id = 1;
        if (llama_decode(context, llama_batch_get_one(&id, 1))) return 1;
        getsid(0);
    }
    printf("%zu\n", past);
    return 0;
}
