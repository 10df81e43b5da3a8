// Attention in tiles with a running maximum (FlashAttention, https://arxiv.org/abs/2205.14135), for one row or many.
//
// Queries of all heads that share keys are rows of one block, token by token. Tiles of 64 cells are taken one after
// another: keys are laid out cell beside cell, values as they are, both in float. A tile that no token of the block may
// see is passed over, and a token that may see nothing of a tile is left out of it: so a causal mask halves the work, and
// several sequences in one cache cost each other nothing. Where there are fewer blocks than threads can share, the cells
// are parted as well, and the parts are joined at the end.

#include "attention.h"

#include "tiles.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace slm {

#ifdef SLM_LANES

constexpr int BLOCK_ROWS = 96;  // of a block, unless more heads share their keys

// What a node asks for, and how its work is parted.
struct Plan {
    const ggml_tensor *queries, *keys, *values, *mask, *sinks;
    int64_t key_width, value_width, tokens, cells, heads, key_heads, streams;
    int64_t sharing;       // heads of one key head
    int64_t block_tokens;  // tokens of a block
    int64_t blocks, parts, pieces;
    float scale, max_bias, cap;

    Plan(const ggml_tensor * node, int threads) {
        queries = node->src[0];
        keys = node->src[1];
        values = node->src[2];
        mask = node->src[3];
        sinks = node->src[4];
        key_width = keys->ne[0];
        value_width = values->ne[0];
        tokens = queries->ne[1];
        cells = keys->ne[1];
        heads = queries->ne[2];
        key_heads = keys->ne[2];
        streams = queries->ne[3];
        sharing = heads / key_heads;
        block_tokens = std::max<int64_t>(1, std::min(tokens, BLOCK_ROWS / sharing));
        blocks = (tokens + block_tokens - 1) / block_tokens;
        const int64_t units = streams * key_heads * blocks, wanted = 4 * threads;
        parts = threads == 1 || units >= wanted ? 1 : std::min((wanted + units - 1) / units, cells / (2 * CELLS));
        parts = std::max<int64_t>(parts, 1);
        pieces = units * parts;
        memcpy(&scale, node->op_params, sizeof(float));
        memcpy(&max_bias, node->op_params + 1, sizeof(float));
        memcpy(&cap, node->op_params + 2, sizeof(float));
    }

    int64_t block_rows() const { return block_tokens * sharing; }
    // Floats of one thread: keys, values, queries and outputs of a block, maximum and sum of its rows.
    int64_t scratch() const {
        const int64_t wanted = CELLS * (key_width + value_width) + block_rows() * (key_width + value_width + 2);
        return (wanted + 15) / 16 * 16;
    }
    // Floats that a row leaves in each part: its maximum, its sum, its output.
    int64_t partial() const { return value_width + 2; }
    int64_t partials() const { return parts == 1 ? 0 : streams * tokens * heads * parts * partial(); }

    // ALiBi's slope of a head, https://arxiv.org/abs/2108.12409, as llama.cpp has it.
    float slope(int64_t head) const {
        if (max_bias <= 0.0f) {
            return 1.0f;
        }
        const int64_t power = int64_t(1) << (int64_t) std::floor(std::log2((double) heads));
        const float even = std::pow(2.0f, -max_bias / power), odd = std::pow(2.0f, -max_bias / 2.0f / power);
        return head < power ? std::pow(even, (float) (head + 1)) : std::pow(odd, (float) (2 * (head - power) + 1));
    }
};

// One block of rows on one thread.
struct Block {
    float *keys, *values, *queries, *outputs, *most, *sums;
    Block(const Plan & plan, float * memory) {
        keys = memory;
        values = keys + CELLS * plan.key_width;
        queries = values + CELLS * plan.value_width;
        outputs = queries + plan.block_rows() * plan.key_width;
        most = outputs + plan.block_rows() * plan.value_width;
        sums = most + plan.block_rows();
    }
};

struct Piece {
    int64_t stream, key_head, block, part;
    Piece(const Plan & plan, int64_t number) {
        number = plan.pieces - 1 - number;  // the last tokens see most: begin with them
        part = number % plan.parts;
        key_head = number / plan.parts % plan.key_heads;
        stream = number / plan.parts / plan.key_heads % plan.streams;
        block = number / plan.parts / plan.key_heads / plan.streams;
    }
};

// Where the output of a token's head goes.
static float * place(const ggml_tensor * node, int64_t stream, int64_t token, int64_t head) {
    return (float *) ((char *) node->data + stream * node->nb[3] + token * node->nb[2] + head * node->nb[1]);
}

static void finish(const Plan & plan, float most, float sum, const float * output, int64_t head, float * to) {
    float factor = 1.0f;
    if (plan.sinks) {
        const float sink = ((const float *) plan.sinks->data)[head], now = std::max(most, sink);
        factor = std::exp(most - now);
        sum = sum * factor + std::exp(sink - now);
    }
    const lanes scale = all(sum == 0.0f ? 0.0f : factor / sum);
    for (int64_t at = 0; at < plan.value_width; at += SLM_LANES) {
        store(to + at, multiply(scale, load(output + at)));
    }
}

template <typename Number>
static void compute(const Plan & plan, const Piece & piece, const Block & block, ggml_tensor * node, float * partials) {
    const ggml_tensor *queries = plan.queries, *keys = plan.keys, *values = plan.values, *mask = plan.mask;
    const int64_t first = piece.block * plan.block_tokens, tokens = std::min(plan.block_tokens, plan.tokens - first);
    const int64_t rows = tokens * plan.sharing, first_head = piece.key_head * plan.sharing;
    const float scale = plan.cap != 0.0f ? plan.scale / plan.cap : plan.scale;
    for (int64_t row = 0; row < rows; row++) {
        const char * from = (const char *) queries->data + piece.stream * queries->nb[3] +
                            (first + row / plan.sharing) * queries->nb[1] + (first_head + row % plan.sharing) * queries->nb[2];
        for (int64_t at = 0; at < plan.key_width; at += SLM_LANES) {
            store(block.queries + row * plan.key_width + at, multiply(all(scale), load((const float *) from + at)));
        }
        block.most[row] = -INFINITY;
        block.sums[row] = 0.0f;
    }
    memset(block.outputs, 0, rows * plan.value_width * sizeof(float));

    const auto mask_of = [&](int64_t token, int64_t cell) {
        return mask ? (const ggml_fp16_t *) ((const char *) mask->data + piece.stream % mask->ne[3] * mask->nb[3] +
                                             (first + token) * mask->nb[1]) + cell : nullptr;
    };
    const char * key_data = (const char *) keys->data + piece.key_head * keys->nb[2] +
                            piece.stream / (plan.streams / keys->ne[3]) * keys->nb[3];
    const char * value_data = (const char *) values->data + piece.key_head * values->nb[2] +
                              piece.stream / (plan.streams / values->ne[3]) * values->nb[3];
    const bool few = rows <= ROWS;  // read once or twice: values are taken as they lie
    const int64_t tiles = (plan.cells + CELLS - 1) / CELLS;
    for (int64_t t = tiles * piece.part / plan.parts; t < tiles * (piece.part + 1) / plan.parts; t++) {
        const int64_t cell = t * CELLS;
        const int count = (int) std::min<int64_t>(CELLS, plan.cells - cell);
        bool laid = false;
        const float * left[ROWS];
        float *outputs[ROWS], *scores[ROWS], score_memory[ROWS][CELLS];
        float factors[ROWS];
        int64_t waiting[ROWS];
        int n = 0;
        const auto flush = [&] {
            for (int i = 0; i < n; i++) {
                left[i] = block.queries + waiting[i] * plan.key_width;
                outputs[i] = block.outputs + waiting[i] * plan.value_width;
                scores[i] = score_memory[i];
            }
            const auto both = [&](auto count_) {
                constexpr int N = decltype(count_)::value;
#if SLM_LANES == 8
                if (few) {
                    score<N, Number>(left, {key_data + cell * keys->nb[1], keys->nb[1], plan.key_width * sizeof(Number)},
                                     {value_data + cell * values->nb[1], values->nb[1], plan.value_width * sizeof(Number)},
                                     count, scores);
                } else
#endif
                product<N>(left, block.keys, CELLS, CELLS, plan.key_width, scores, nullptr);
                for (int i = 0; i < N; i++) {
                    const int64_t row = waiting[i];
                    factors[i] = weigh(scores[i], mask_of(row / plan.sharing, cell), count,
                                       plan.slope(first_head + row % plan.sharing), plan.cap, block.most + row, block.sums + row);
                    left[i] = scores[i];
                }
                if (few) {
                    product<N>(left, (const Number *) (value_data + cell * values->nb[1]), values->nb[1] / sizeof(Number),
                               plan.value_width, count, outputs, factors);
                } else {
                    product<N>(left, block.values, plan.value_width, plan.value_width, CELLS, outputs, factors);
                }
            };
            switch (n) {
                case 1: both(std::integral_constant<int, 1>()); break;
                case 2: both(std::integral_constant<int, 2>()); break;
                case 3: both(std::integral_constant<int, 3>()); break;
                case 4: both(std::integral_constant<int, 4>()); break;
                case 5: both(std::integral_constant<int, 5>()); break;
                case 6: both(std::integral_constant<int, 6>()); break;
            }
            n = 0;
        };
        for (int64_t token = 0; token < tokens; token++) {
            if (mask && !sees_any(mask_of(token, cell), count)) {
                continue;
            }
            if (!laid) {
                if (!few || SLM_LANES == 16) {
                    lay_keys<Number>(key_data + cell * keys->nb[1], keys->nb[1], count, plan.key_width, block.keys);
                }
                if (!few) {
                    lay_values<Number>(value_data + cell * values->nb[1], values->nb[1], count, plan.value_width, block.values);
                }
                laid = true;
            }
            for (int64_t head = 0; head < plan.sharing; head++) {
                waiting[n++] = token * plan.sharing + head;
                if (n == ROWS) {
                    flush();
                }
            }
        }
        flush();
    }

    for (int64_t row = 0; row < rows; row++) {
        const int64_t token = first + row / plan.sharing, head = first_head + row % plan.sharing;
        const float * output = block.outputs + row * plan.value_width;
        if (plan.parts == 1) {
            finish(plan, block.most[row], block.sums[row], output, head, place(node, piece.stream, token, head));
        } else {
            const int64_t number = (piece.stream * plan.tokens + token) * plan.heads + head;
            float * partial = partials + (number * plan.parts + piece.part) * plan.partial();
            partial[0] = block.most[row];
            partial[1] = block.sums[row];
            memcpy(partial + 2, output, plan.value_width * sizeof(float));
        }
    }
}

// The parts of a row become one.
static void join(const Plan & plan, float * partial, int64_t head, float * to) {
    float most = -INFINITY, sum = 0.0f;
    for (int64_t part = 0; part < plan.parts; part++) {
        most = std::max(most, partial[part * plan.partial()]);
    }
    float * output = partial + 2;
    for (int64_t part = 0; part < plan.parts; part++) {
        const float * from = partial + part * plan.partial();
        const float factor = from[1] == 0.0f ? 0.0f : std::exp(from[0] - most);
        sum += from[1] * factor;
        for (int64_t at = 0; at < plan.value_width; at += SLM_LANES) {
            const lanes scaled = multiply(all(factor), load(from + 2 + at));
            store(output + at, part ? add(load(output + at), scaled) : scaled);
        }
    }
    finish(plan, most, sum, output, head, to);
}

bool has_attention() {
    return true;
}

bool knows_attention(const ggml_tensor * node) {
    const ggml_tensor *q = node->src[0], *k = node->src[1], *v = node->src[2], *mask = node->src[3];
    return q->type == GGML_TYPE_F32 && node->type == GGML_TYPE_F32 && k->type == v->type &&
           (k->type == GGML_TYPE_F16 || k->type == GGML_TYPE_F32) && k->ne[0] % SLM_LANES == 0 &&
           v->ne[0] % SLM_LANES == 0 && q->nb[0] == sizeof(float) && k->nb[0] == ggml_type_size(k->type) &&
           v->nb[0] == ggml_type_size(v->type) && q->ne[2] % k->ne[2] == 0 && k->ne[2] == v->ne[2] &&
           q->ne[3] % k->ne[3] == 0 && q->ne[3] % v->ne[3] == 0 &&
           (!mask || (mask->type == GGML_TYPE_F16 && mask->ne[2] == 1 && mask->nb[0] == sizeof(ggml_fp16_t)));
}

size_t attention_work_size(const ggml_tensor * node, int threads) {
    const Plan plan(node, threads);
    return (threads * plan.scratch() + plan.partials()) * sizeof(float) + 64;
}

void attention(const ggml_compute_params * params, ggml_tensor * node) {
    const Plan plan(node, params->nth);
    float * memory = (float *) GGML_PAD((uintptr_t) params->wdata, 64);
    float * partials = memory + params->nth * plan.scratch();
    const Block block(plan, memory + params->ith * plan.scratch());
    if (params->ith == 0) {
        ggml_threadpool_chunk_set(params->threadpool, params->nth);
    }
    ggml_barrier(params->threadpool);
    for (int64_t number = params->ith; number < plan.pieces; number = ggml_threadpool_chunk_add(params->threadpool, 1)) {
        if (plan.keys->type == GGML_TYPE_F16) {
            compute<ggml_fp16_t>(plan, Piece(plan, number), block, node, partials);
        } else {
            compute<float>(plan, Piece(plan, number), block, node, partials);
        }
    }
    if (plan.parts == 1) {
        return;
    }
    ggml_barrier(params->threadpool);
    for (int64_t row = params->ith; row < plan.streams * plan.tokens * plan.heads; row += params->nth) {
        const int64_t head = row % plan.heads, token = row / plan.heads % plan.tokens, stream = row / plan.heads / plan.tokens;
        join(plan, partials + row * plan.parts * plan.partial(), head, place(node, stream, token, head));
    }
}

#else

bool has_attention() {
    return false;
}

bool knows_attention(const ggml_tensor *) {
    return false;
}

size_t attention_work_size(const ggml_tensor *, int) {
    return 0;
}

void attention(const ggml_compute_params *, ggml_tensor *) {}

#endif

}  // namespace slm
