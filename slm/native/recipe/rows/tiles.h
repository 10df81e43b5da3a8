// What attention.cpp does with one tile: 64 cells of keys and values, and up to six rows of queries.

#pragma once

#include "lanes.h"

#include <algorithm>
#include <cmath>

namespace slm {

#ifdef SLM_LANES

constexpr int CELLS = 64;  // of a tile
constexpr int ROWS = 6;    // multiplied at a time

// out = factor * out + left * right for N rows and V vectors. left: rows of `depth` numbers; right: `depth` rows,
// `stride` apart. Without factors out is only written.
template <int N, int V, typename Number>
static inline void tile(const float * const * left, const Number * right, int64_t stride, int64_t depth, float * const * out,
                        const float * factors) {
    lanes sums[N][V];
    for (int row = 0; row < N; row++) {
        for (int v = 0; v < V; v++) {
            sums[row][v] = factors ? multiply(all(factors[row]), load(out[row] + v * SLM_LANES)) : all(0.0f);
        }
    }
    for (int64_t at = 0; at < depth; at++) {
        lanes from[V];
        for (int v = 0; v < V; v++) {
            from[v] = load(right + at * stride + v * SLM_LANES);
        }
        for (int row = 0; row < N; row++) {
            const lanes x = all(left[row][at]);
            for (int v = 0; v < V; v++) {
                sums[row][v] = multiply_add(x, from[v], sums[row][v]);
            }
        }
    }
    for (int row = 0; row < N; row++) {
        for (int v = 0; v < V; v++) {
            store(out[row] + v * SLM_LANES, sums[row][v]);
        }
    }
}

// The same for `width` columns.
template <int N, typename Number>
static void product(const float * const * left, const Number * right, int64_t stride, int64_t width, int64_t depth,
                    float * const * out, const float * factors) {
    const float * to[N];
    float * at[N];
    int64_t column = 0;
    const auto move = [&] {
        for (int row = 0; row < N; row++) {
            at[row] = out[row] + column;
            to[row] = left[row];
        }
    };
    for (; column + VECTORS * SLM_LANES <= width; column += VECTORS * SLM_LANES) {
        move();
        tile<N, VECTORS>(to, right + column, stride, depth, at, factors);
    }
    for (; column < width; column += SLM_LANES) {
        move();
        tile<N, 1>(to, right + column, stride, depth, at, factors);
    }
}

#if SLM_LANES == 8
// Keys or values as they lie.
struct Cells {
    const char * from;
    size_t stride, bytes;

    // Other heads lie between one head's cells, and the processor's prefetcher does not follow.
    void fetch(int cell) const {
        for (size_t at = 0; at < bytes; at += 64) {
            __builtin_prefetch(from + cell * stride + at);
        }
    }
};

// Scores of N rows and the keys as they lie, for rows too few to pay for laying keys out. Cells past the last get its
// scores. Values of these cells and keys of the next are fetched meanwhile.
template <int N, typename Number>
static void score(const float * const * queries, const Cells & keys, const Cells & values, int count, float * const * out) {
    const int64_t width = keys.bytes / sizeof(Number);
    constexpr int TOGETHER = N <= 3 ? 4 : 2;  // cells, so that sums stay in registers
    for (int cell = 0; cell < CELLS; cell += SLM_LANES) {
        lanes parts[N][SLM_LANES];
        for (int some = 0; some < SLM_LANES; some += TOGETHER) {
            const Number * key[TOGETHER];
            lanes products[N][TOGETHER];
            for (int i = 0; i < TOGETHER; i++) {
                key[i] = (const Number *) (keys.from + std::min(cell + some + i, count - 1) * keys.stride);
                values.fetch(cell + some + i);
                keys.fetch(cell + some + i + CELLS);
                for (int row = 0; row < N; row++) {
                    products[row][i] = all(0.0f);
                }
            }
            for (int64_t at = 0; at < width; at += SLM_LANES) {
                for (int i = 0; i < TOGETHER; i++) {
                    const lanes x = load(key[i] + at);
                    for (int row = 0; row < N; row++) {
                        products[row][i] = multiply_add(x, load(queries[row] + at), products[row][i]);
                    }
                }
            }
            for (int row = 0; row < N; row++) {
                std::copy(products[row], products[row] + TOGETHER, parts[row] + some);
            }
        }
        for (int row = 0; row < N; row++) {
            store(out[row] + cell, sums(parts[row]));
        }
    }
}
#endif

// Cells become columns: to[number of a key's dimension][CELLS].
template <typename Number> static void lay_keys(const char * from, size_t stride, int count, int64_t width, float * to) {
    for (int cell = 0; cell < CELLS; cell += SLM_LANES) {
        for (int64_t at = 0; at < width; at += SLM_LANES) {
            lanes rows[SLM_LANES];
            for (int row = 0; row < SLM_LANES; row++) {
                rows[row] = cell + row < count ? load((const Number *) (from + (cell + row) * stride) + at) : all(0.0f);
            }
            transpose(rows);
            for (int row = 0; row < SLM_LANES; row++) {
                store(to + (at + row) * CELLS + cell, rows[row]);
            }
        }
    }
}

template <typename Number> static void lay_values(const char * from, size_t stride, int count, int64_t width, float * to) {
    for (int cell = 0; cell < CELLS; cell++) {
        for (int64_t at = 0; at < width; at += SLM_LANES) {
            store(to + cell * width + at, cell < count ? load((const Number *) (from + cell * stride) + at) : all(0.0f));
        }
    }
}

constexpr ggml_fp16_t HIDDEN = 0xFC00;  // minus infinity

static bool sees_any(const ggml_fp16_t * mask, int count) {
    int seen = 0;
    for (int cell = 0; cell < count; cell++) {
        seen |= mask[cell] ^ HIDDEN;
    }
    return seen != 0;
}

// Scores of a row become weights of values; the row's maximum and sum go on. Returns what its output is to be scaled by.
static float weigh(float * scores, const ggml_fp16_t * mask, int count, float slope, float cap, float * most, float * sum_) {
    if (cap != 0.0f) {
        for (int at = 0; at < CELLS; at += SLM_LANES) {  // tanh(x) = 1 - 2 / (exp(2 x) + 1)
            const lanes x = power(multiply(all(2.0f), load(scores + at)));
            store(scores + at, multiply_add(all(-2.0f * cap), divide(all(1.0f), add(x, all(1.0f))), all(cap)));
        }
    }
    if (mask) {
        ggml_fp16_t copy[CELLS];
        if (count < CELLS) {
            std::fill(std::copy(mask, mask + count, copy), copy + CELLS, HIDDEN);
            mask = copy;
        }
        for (int at = 0; at < CELLS; at += SLM_LANES) {
            store(scores + at, multiply_add(all(slope), load(mask + at), load(scores + at)));
        }
    } else {
        std::fill(scores + count, scores + CELLS, -INFINITY);
    }
    lanes high = load(scores);
    for (int at = SLM_LANES; at < CELLS; at += SLM_LANES) {
        high = larger(high, load(scores + at));
    }
    const float now = std::max(*most, largest(high)), level = now == -INFINITY ? 0.0f : now;
    lanes total = all(0.0f);
    for (int at = 0; at < CELLS; at += SLM_LANES) {
        const lanes weight = power(add(load(scores + at), all(-level)));
        store(scores + at, weight);
        total = add(total, weight);
    }
    const float factor = std::exp(*most - level);
    *most = now;
    *sum_ = *sum_ * factor + sum(total);
    return factor;
}

#endif

}  // namespace slm
