// Rotary position embeddings whose sines are computed once for all layers.
//
// llama.cpp computes sine and cosine of every token anew for the queries and for the keys of every layer: at 512 tokens
// that is a tenth of the time. They depend on the positions and on the model's numbers alone, so each thread keeps those of
// the last batch. The numbers are computed as llama.cpp does it: not a bit of the result changes.

#include "rotation.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace slm {

// What sines and cosines follow from: the node's parameters, the model's factors of frequencies, the tokens' positions.
struct Angles {
    int32_t parameters[GGML_MAX_OP_PARAMS / sizeof(int32_t)];
    std::vector<float> factors;
    std::vector<int32_t> positions;
    std::vector<float> cosines, sines;  // [token][dimensions / 2]

    bool is_of(const ggml_tensor * node, const int32_t * wanted, size_t count) const {
        const ggml_tensor * given = node->src[2];
        const size_t many = given ? node->op_params[1] / 2 : 0;
        return positions.size() == count && factors.size() == many &&
               memcmp(parameters, node->op_params, sizeof(parameters)) == 0 &&
               memcmp(positions.data(), wanted, count * sizeof(int32_t)) == 0 &&
               (!given || memcmp(factors.data(), given->data, many * sizeof(float)) == 0);
    }

    void compute(const ggml_tensor * node, const int32_t * wanted, size_t count) {
        memcpy(parameters, node->op_params, sizeof(parameters));
        const int half = node->op_params[1] / 2;
        float base, frequency, magnitude;
        memcpy(&base, node->op_params + 5, sizeof(float));
        memcpy(&frequency, node->op_params + 6, sizeof(float));
        memcpy(&magnitude, node->op_params + 8, sizeof(float));
        const float * given = node->src[2] ? (const float *) node->src[2]->data : nullptr;
        factors.assign(given, given ? given + half : nullptr);
        positions.assign(wanted, wanted + count);
        cosines.resize(count * half);
        sines.resize(count * half);
        const float step = powf(base, -2.0f / (2 * half));
        for (size_t token = 0; token < count; token++) {
            float angle = (float) wanted[token];
            for (int at = 0; at < half; at++) {
                const float turned = frequency * (given ? angle / given[at] : angle);
                cosines[token * half + at] = cosf(turned) * magnitude;
                sines[token * half + at] = sinf(turned) * magnitude;
                angle *= step;
            }
        }
    }
};

// Those of the last batch on this thread; two, because models may turn local and global attention differently.
static const Angles & angles_of(const ggml_tensor * node, const int32_t * positions, size_t count) {
    static thread_local Angles kept[2];
    static thread_local int next = 0;
    for (const Angles & angles : kept) {
        if (angles.is_of(node, positions, count)) {
            return angles;
        }
    }
    Angles & angles = kept[next];
    next = 1 - next;
    angles.compute(node, positions, count);
    return angles;
}

bool knows_rotation(const ggml_tensor * node) {
    const ggml_tensor * from = node->src[0];
    float extension;
    memcpy(&extension, node->op_params + 7, sizeof(float));
    const int dimensions = node->op_params[1], mode = node->op_params[2], offset = node->op_params[15];
    return from->type == GGML_TYPE_F32 && node->type == GGML_TYPE_F32 && extension == 0.0f && offset == 0 &&
           (mode == GGML_ROPE_TYPE_NORMAL || mode == GGML_ROPE_TYPE_NEOX) && dimensions > 0 && dimensions % 2 == 0 &&
           dimensions <= from->ne[0] && from->ne[3] == 1 && from->nb[0] == sizeof(float) && node->nb[0] == sizeof(float) &&
           node->src[1]->type == GGML_TYPE_I32;
}

void rotation(const ggml_compute_params * params, ggml_tensor * node) {
    const ggml_tensor * source = node->src[0];
    const int64_t width = source->ne[0], heads = source->ne[1], tokens = source->ne[2];
    const int half = node->op_params[1] / 2;
    const bool pairs = node->op_params[2] == GGML_ROPE_TYPE_NORMAL;  // neighbours are turned; else halves
    const int64_t first = tokens * params->ith / params->nth, end = tokens * (params->ith + 1) / params->nth;
    if (first == end) {
        return;
    }
    const int32_t * positions = (const int32_t *) node->src[1]->data + first;
    const Angles & angles = angles_of(node, positions, end - first);
    for (int64_t token = first; token < end; token++) {
        const float * cosines = angles.cosines.data() + (token - first) * half;
        const float * sines = angles.sines.data() + (token - first) * half;
        for (int64_t head = 0; head < heads; head++) {
            const float * from = (const float *) ((const char *) source->data + token * source->nb[2] + head * source->nb[1]);
            float * to = (float *) ((char *) node->data + token * node->nb[2] + head * node->nb[1]);
            if (pairs) {
                for (int at = 0; at < half; at++) {
                    const float a = from[2 * at], b = from[2 * at + 1];
                    to[2 * at] = a * cosines[at] - b * sines[at];
                    to[2 * at + 1] = a * sines[at] + b * cosines[at];
                }
            } else {
                for (int at = 0; at < half; at++) {
                    const float a = from[at], b = from[half + at];
                    to[at] = a * cosines[at] - b * sines[at];
                    to[half + at] = a * sines[at] + b * cosines[at];
                }
            }
            if (to != from) {
                std::copy(from + 2 * half, from + width, to + 2 * half);
            }
        }
    }
}

}  // namespace slm
