// Times llama.cpp: prefill of a prompt and the decoding of one token for each of some rows. Prints one line of JSON. Or replies.
//
//   llama_cpp MODEL.gguf THREADS ROWS PROMPT NEW ROUNDS     times it
//   llama_cpp --quantize IN.gguf OUT.gguf q8_0|q4_k|q4_0    writes a model in fewer bits, every matrix of them in the one form
//   llama_cpp --read THREADS                                bytes a second that the machine reads: 1 GiB is summed
//   llama_cpp --reply MODEL.gguf PROMPT NEW [VECTOR.gguf SCALE]    the most probable tokens, with a control vector or without
//
// Every row has the same prompt of PROMPT tokens; then the most probable token is taken, NEW times.

#include "common.h"
#include "ggml-backend.h"
#include "llama.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

namespace {

double now() {
    using namespace std::chrono;
    return duration<double>(steady_clock::now().time_since_epoch()).count();
}

[[noreturn]] void fail(const char *reason) {
    std::fprintf(stderr, "%s\n", reason);
    std::exit(1);
}

int quantize(const char *from, const char *to, const std::string &form) {
    llama_model_quantize_params params = llama_model_quantize_default_params();
    params.pure = true;
    if (form == "q8_0") params.ftype = LLAMA_FTYPE_MOSTLY_Q8_0;
    else if (form == "q4_k") params.ftype = LLAMA_FTYPE_MOSTLY_Q4_K_S;
    else if (form == "q4_0") params.ftype = LLAMA_FTYPE_MOSTLY_Q4_0;
    else fail("the form is q8_0, q4_k or q4_0");
    return static_cast<int>(llama_model_quantize(from, to, &params));
}

llama_token best(const float *logits, int n) {
    return static_cast<llama_token>(std::max_element(logits, logits + n) - logits);
}

// The best of five sums of a gigabyte, each thread having a part: what no product with a matrix can be faster than.
int read(int threads) {
    std::vector<uint64_t> all(1ull << 27, 1);
    double best = 0;
    uint64_t total = 0;
    for (int round = 0; round < 5; ++round) {
        std::vector<uint64_t> sums(static_cast<size_t>(threads));
        std::vector<std::thread> running;
        const double begin = now();
        for (int i = 0; i < threads; ++i)
            running.emplace_back([&, i] {
                const size_t from = all.size() * i / threads, to = all.size() * (i + 1) / threads;
                uint64_t own[16] = {};
                for (size_t at = from; at + 16 <= to; at += 16)
                    for (size_t j = 0; j < 16; ++j) own[j] += all[at + j];
                for (uint64_t sum : own) sums[i] += sum;
            });
        for (std::thread &thread : running) thread.join();
        best = std::max(best, all.size() * sizeof(uint64_t) / (now() - begin));
        for (uint64_t sum : sums) total += sum;
    }
    if (total != 5 * all.size()) fail("the sum is wrong");
    std::printf("%.0f\n", best);
    return 0;
}

int reply(int argc, char **argv) {
    llama_model_params of_model = llama_model_default_params();
    of_model.n_gpu_layers = 0;
    llama_model *model = llama_model_load_from_file(argv[2], of_model);
    if (!model) fail("the model cannot be read");
    const llama_vocab *vocab = llama_model_get_vocab(model);
    llama_context_params of_context = llama_context_default_params();
    of_context.n_ctx = of_context.n_batch = of_context.n_ubatch = 512;
    of_context.n_threads = of_context.n_threads_batch = 1;
    of_context.type_k = of_context.type_v = GGML_TYPE_F32;
    llama_context *context = llama_init_from_model(model, of_context);
    if (!context) fail("no context can be made");
    if (argc == 7) {
        const auto vector = common_control_vector_load({{std::strtof(argv[6], nullptr), argv[5]}});
        if (vector.n_embd < 1) fail("the control vector cannot be read");
        if (llama_set_adapter_cvec(context, vector.data.data(), vector.data.size(), vector.n_embd, 1, llama_model_n_layer(model)))
            fail("the control vector does not fit");
    }
    std::vector<llama_token> tokens(512);
    const int n = llama_tokenize(vocab, argv[3], static_cast<int32_t>(std::strlen(argv[3])), tokens.data(), 512, true, false);
    if (n < 1) fail("the prompt has no tokens");
    tokens.resize(static_cast<size_t>(n));
    std::string text;
    for (int i = std::atoi(argv[4]); i > 0; --i) {
        if (llama_decode(context, llama_batch_get_one(tokens.data(), static_cast<int32_t>(tokens.size())))) fail("a token cannot be computed");
        const llama_token next = best(llama_get_logits_ith(context, -1), llama_vocab_n_tokens(vocab));
        if (llama_vocab_is_eog(vocab, next)) break;
        char piece[256];
        const int length = llama_token_to_piece(vocab, next, piece, sizeof piece, 0, false);
        text.append(piece, static_cast<size_t>(std::max(length, 0)));
        tokens = {next};
    }
    std::fwrite(text.data(), 1, text.size(), stdout);
    llama_free(context);
    llama_model_free(model);
    return 0;
}

} // namespace

int main(int argc, char **argv) {
    if (argc == 3 && !std::strcmp(argv[1], "--read")) return read(std::atoi(argv[2]));
    llama_log_set([](ggml_log_level level, const char *text, void *) {
        if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
    }, nullptr);
    if (const char *directory = std::getenv("LLAMA_CPP_BACKENDS")) ggml_backend_load_all_from_path(directory);
    else ggml_backend_load_all();
    llama_backend_init();
    if (argc == 5 && !std::strcmp(argv[1], "--quantize")) return quantize(argv[2], argv[3], argv[4]);
    if ((argc == 5 || argc == 7) && !std::strcmp(argv[1], "--reply")) return reply(argc, argv);
    if (argc != 7) fail("llama_cpp MODEL.gguf THREADS ROWS PROMPT NEW ROUNDS");
    const int threads = std::atoi(argv[2]), rows = std::atoi(argv[3]), prompt = std::atoi(argv[4]);
    const int n = std::atoi(argv[5]), rounds = std::atoi(argv[6]);

    llama_model_params of_model = llama_model_default_params();
    of_model.n_gpu_layers = 0;
    llama_model *model = llama_model_load_from_file(argv[1], of_model);
    if (!model) fail("the model cannot be read");
    llama_context_params of_context = llama_context_default_params();
    of_context.n_ctx = static_cast<uint32_t>(rows * (prompt + n + 1));
    of_context.n_batch = static_cast<uint32_t>(rows * prompt);
    of_context.n_ubatch = of_context.n_batch;
    of_context.n_seq_max = static_cast<uint32_t>(rows);
    of_context.n_threads = of_context.n_threads_batch = threads;
    of_context.type_k = of_context.type_v = GGML_TYPE_F32;
    llama_context *context = llama_init_from_model(model, of_context);
    if (!context) fail("no context can be made");
    const int vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));

    llama_batch batch = llama_batch_init(rows * prompt, 0, 1);
    auto add = [&](llama_token token, int at, int row, bool wanted) {
        const int i = batch.n_tokens++;
        batch.token[i] = token;
        batch.pos[i] = at;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = row;
        batch.logits[i] = wanted;
    };
    std::vector<double> prefill, decode;
    std::vector<llama_token> reply;
    for (int round = 0; round <= rounds; ++round) {
        llama_memory_clear(llama_get_memory(context), true);
        batch.n_tokens = 0;
        for (int row = 0; row < rows; ++row)
            for (int at = 0; at < prompt; ++at) add(100 + (at * 37) % 1000, at, row, at + 1 == prompt);
        const double begin = now();
        if (llama_decode(context, batch)) fail("the prompt cannot be computed");
        std::vector<llama_token> next(static_cast<size_t>(rows));
        for (int row = 0; row < rows; ++row) next[row] = best(llama_get_logits_ith(context, row * prompt + prompt - 1), vocabulary);
        const double first = now();
        reply.clear();
        for (int i = 0; i < n; ++i) {
            reply.push_back(next[0]);
            batch.n_tokens = 0;
            for (int row = 0; row < rows; ++row) add(next[row], prompt + i, row, true);
            if (llama_decode(context, batch)) fail("a token cannot be computed");
            for (int row = 0; row < rows; ++row) next[row] = best(llama_get_logits_ith(context, row), vocabulary);
        }
        if (round == 0) continue; // warms up
        prefill.push_back(first - begin);
        decode.push_back((now() - first) / n);
    }
    auto list = [](const char *name, const std::vector<double> &all) {
        std::printf("\"%s\": [", name);
        for (size_t i = 0; i < all.size(); ++i) std::printf("%s%.6f", i ? ", " : "", all[i]);
        std::printf("]");
    };
    std::printf("{\"threads\": %d, \"rows\": %d, ", threads, rows);
    list("prefill_seconds", prefill);
    std::printf(", ");
    list("decode_seconds_per_token", decode);
    std::printf(", \"tokens\": [");
    for (size_t i = 0; i < std::min<size_t>(reply.size(), 8); ++i) std::printf("%s%d", i ? ", " : "", reply[i]);
    std::printf("]}\n");
    llama_batch_free(batch);
    llama_free(context);
    llama_model_free(model);
}
