// A strip of weights, laid out once for all rows of activations (products.cpp).

#pragma once

#include "bytes.h"

#include <algorithm>
#include <cstdint>
#include <vector>

namespace slm {

#ifdef SLM_LANES

constexpr int STRIP = 2 * SLM_LANES;  // rows of weights, in two vectors

struct Strip {
    std::vector<uint8_t> memory;
    uint8_t * bytes = nullptr;  // [width / 4][STRIP][4]
    float * scales = nullptr;   // [width / group][STRIP]
    float * minima = nullptr;   // the same

    void resize(int64_t width, int group) {
        const size_t numbers = width / group * STRIP * sizeof(float);
        if (memory.size() < width * STRIP + 2 * numbers + 64) {
            memory.resize(width * STRIP + 2 * numbers + 64);
        }
        bytes = (uint8_t *) GGML_PAD((uintptr_t) memory.data(), 64);
        scales = (float *) (bytes + width * STRIP);
        minima = scales + width / group * STRIP;
    }

    // Rows past the last are laid out as that: their sums are not written.
    template <typename Type> void fill(const ggml_tensor * weights, int64_t first) {
        const int64_t width = weights->ne[0];
        constexpr int GROUPS = Type::BLOCK / Type::GROUP;
        alignas(64) uint8_t block[STRIP][Type::BLOCK];
        float scale[GROUPS], minimum[GROUPS];
        for (int64_t at = 0; at < width / Type::BLOCK; at++) {
            for (int row = 0; row < STRIP; row++) {
                const Type source(weights->data, weights->nb[1], std::min(first + row, weights->ne[1] - 1));
                source.expand(at, block[row], scale, minimum);
                for (int group = 0; group < GROUPS; group++) {
                    scales[(at * GROUPS + group) * STRIP + row] = scale[group];
                    if constexpr (Type::MINIMUM) {
                        minima[(at * GROUPS + group) * STRIP + row] = minimum[group];
                    }
                }
            }
            for (int part = 0; part < Type::BLOCK; part += 32) {
                uint8_t * to = bytes + (at * Type::BLOCK + part) * STRIP;
                transpose(block[0] + part, Type::BLOCK, to, 4 * STRIP);
                transpose(block[SLM_LANES] + part, Type::BLOCK, to + 4 * SLM_LANES, 4 * STRIP);
            }
        }
    }
};

#endif

}  // namespace slm
