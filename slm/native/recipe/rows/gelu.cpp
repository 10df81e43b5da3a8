// GELU with a whole vector at a time.
//
// llama.cpp looks each number up in a table of half precision, one after the other: a tenth of the time in which an
// encoder reads. Here it is computed, in single precision: 0.5 x (1 + tanh(u)) is x / (1 + exp(-2 u)), with
// u = sqrt(2 / pi) (x + 0.044715 x^3).

#include "gelu.h"

#include "lanes.h"

#include <cmath>

namespace slm {

#ifdef SLM_LANES

bool has_gelu() { return true; }

bool knows_gelu(const ggml_tensor * node) {
    const bool asked = node->op == GGML_OP_UNARY ? ggml_get_unary_op(node) == GGML_UNARY_OP_GELU
                                                 : ggml_get_glu_op(node) == GGML_GLU_OP_GEGLU;
    const ggml_tensor * gate = node->op == GGML_OP_GLU ? node->src[1] : nullptr;
    return asked && node->type == GGML_TYPE_F32 && node->src[0]->type == GGML_TYPE_F32 &&
           ggml_is_contiguous_1(node) && ggml_is_contiguous_1(node->src[0]) && node->src[0]->ne[2] == 1 &&
           node->src[0]->ne[3] == 1 && (!gate || (gate->type == GGML_TYPE_F32 && ggml_is_contiguous_1(gate)));
}

// Far below zero it is zero, and infinity would be divided by itself.
constexpr float LEAST = -100.0f;

static inline lanes activated(lanes x) {
    x = larger(all(LEAST), x);
    const lanes twice = multiply(x, multiply_add(multiply(x, x), all(-2 * 0.79788456f * 0.044715f), all(-2 * 0.79788456f)));
    return divide(x, add(all(1.0f), power(twice)));
}

static inline float activated(float x) {
    x = x < LEAST ? LEAST : x;
    return x / (1.0f + expf(x * (x * x * (-2 * 0.79788456f * 0.044715f) - 2 * 0.79788456f)));
}

void gelu(const ggml_compute_params * params, ggml_tensor * node) {
    const ggml_tensor * source = node->src[0];
    const ggml_tensor * gate = node->op == GGML_OP_GLU ? (node->src[1] ? node->src[1] : source) : nullptr;
    const int64_t width = node->ne[0], rows = source->ne[1];
    // Without a second tensor both halves stand in the first one, the gate behind unless they are swapped.
    const bool halves = gate == source, swapped = halves && ggml_get_op_params_i32(node, 1);
    // Few rows are shared out by their columns.
    const int64_t parts = rows < params->nth ? params->nth : 1;
    const int64_t all_parts = rows * parts;
    const int64_t first = all_parts * params->ith / params->nth, end = all_parts * (params->ith + 1) / params->nth;
    for (int64_t part = first; part < end; part++) {
        const int64_t row = part / parts, from_column = width * (part % parts) / parts;
        const int64_t to_column = width * (part % parts + 1) / parts;
        const float * x = (const float *) ((const char *) source->data + row * source->nb[1]) + (swapped ? width : 0);
        const float * g = gate ? (const float *) ((const char *) gate->data + row * gate->nb[1]) : nullptr;
        if (halves && !swapped) {
            g += width;
        }
        float * to = (float *) ((char *) node->data + row * node->nb[1]);
        int64_t at = from_column;
        for (; at + SLM_LANES <= to_column; at += SLM_LANES) {
            const lanes y = activated(load(x + at));
            store(to + at, g ? multiply(y, load(g + at)) : y);
        }
        for (; at < to_column; at++) {
            const float y = activated(x[at]);
            to[at] = g ? y * g[at] : y;
        }
    }
}

#else

bool has_gelu() { return false; }
bool knows_gelu(const ggml_tensor *) { return false; }
void gelu(const ggml_compute_params *, ggml_tensor *) {}

#endif

}  // namespace slm
