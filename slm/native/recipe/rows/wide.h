// Products for many rows by tiles of bfloat16: weights are laid out with their scales multiplied in, so that sums stay in
// tiles from the first weight of a row to the last.
//
// Activations are rounded to bfloat16 and not to bytes, which is a fourth of the error (decision 94).

#pragma once

#include "activations.h"
#include "amx.h"
#include "weights.h"

#include <algorithm>
#include <cstdint>
#include <vector>

namespace slm {

#ifdef SLM_AMX

constexpr int TILE = 16, DEEP = 32;  // rows or columns of a tile, and how many numbers of bfloat16 deep it is
constexpr int WIDE = 2 * TILE;       // rows of activations, and of weights, that are multiplied at a time
constexpr int TILE_BYTES = 1024;
constexpr int FETCHED = 512;            // bytes of a row of weights that are fetched ahead
constexpr size_t LAID_OUT = 384 << 10;  // bytes of weights that a thread lays out before it multiplies: they stay in its cache

// Both as bfloat16, to the nearest: 16 of a, then 16 of b.
static inline __m512i to_bfloats(lanes a, lanes b) {
    return (__m512i) _mm512_cvtne2ps_pbh(b, a);
}

// Lays out the weights of 32 rows: for every 32 numbers of theirs two tiles, which have pairs of numbers of 16 rows side by
// side, [width / 32][2][16 pairs][16 rows][2]. Rows past the last are laid out as that: their sums are not written.
template <typename Type> static void lay_out(const ggml_tensor * weights, int64_t first, char * tiles) {
    constexpr int GROUPS = Type::BLOCK / Type::GROUP, PARTS = Type::BLOCK / DEEP;
    const int64_t blocks = weights->ne[0] / Type::BLOCK, block_bytes = weights->nb[1] / blocks;
    alignas(64) uint8_t bytes[Type::BLOCK];
    float scale[GROUPS], minimum[GROUPS];
    lanes rows[PARTS][TILE];
    for (int64_t at = 0; at < blocks; at++) {
        for (int half = 0; half < 2; half++) {
            for (int row = 0; row < TILE; row++) {
                const int64_t number = std::min(first + half * TILE + row, weights->ne[1] - 1);
                const char * later = (const char *) weights->data + number * weights->nb[1] + at * block_bytes + FETCHED;
                for (int64_t line = 0; line < block_bytes; line += 64) {
                    _mm_prefetch(later + line, _MM_HINT_T0);
                }
                Type(weights->data, weights->nb[1], number).expand(at, bytes, scale, minimum);
                const auto numbers = [&](int from) {
                    const float by = scale[from / Type::GROUP];
                    const float least = Type::MINIMUM ? minimum[from / Type::GROUP] : zero_of<Type> * by;
                    const lanes some = to_floats(_mm512_cvtepu8_epi32(_mm_load_si128((const __m128i *) (bytes + from))));
                    return multiply_add(some, all(by), all(-least));
                };
                for (int part = 0; part < PARTS; part++) {
                    rows[part][row] = (lanes) to_bfloats(numbers(part * DEEP), numbers(part * DEEP + DEEP / 2));
                }
            }
            for (int part = 0; part < PARTS; part++) {
                transpose(rows[part]);
                float * to = (float *) (tiles + ((at * PARTS + part) * 2 + half) * TILE_BYTES);
                for (int pair = 0; pair < TILE; pair++) {
                    store(to + pair * TILE, rows[part][pair]);
                }
            }
        }
    }
}

// Where a row of activations begins: 32 rows lie together, for every 32 numbers of theirs two tiles of 16 rows.
static inline char * wide_row(char * rows, int64_t row, int64_t width) {
    return rows + row / WIDE * WIDE * width * 2 + row % WIDE * DEEP * 2;
}

// A row as bfloat16.
static void widen_row(const float * from, char * to, int64_t width) {
    for (int64_t at = 0; at < width; at += DEEP) {
        _mm512_store_si512(to + at * WIDE * 2, to_bfloats(load(from + at), load(from + at + DEEP / 2)));
    }
}

// 32 rows of activations times one strip: sums[row][column], `stride` bytes a row.
static void multiply_wide(const char * weights, const char * rows, int64_t width, char * sums, size_t stride) {
    clear_tile<0>();
    clear_tile<1>();
    clear_tile<2>();
    clear_tile<3>();
    for (int64_t at = 0; at < width; at += DEEP) {
        load_tile<4>(rows, 64);
        load_tile<6>(weights, 64);
        add_bfloats<0, 4, 6>();
        load_tile<5>(rows + TILE_BYTES, 64);
        add_bfloats<2, 5, 6>();
        load_tile<7>(weights + TILE_BYTES, 64);
        add_bfloats<1, 4, 7>();
        add_bfloats<3, 5, 7>();
        weights += 2 * TILE_BYTES;
        rows += 2 * TILE_BYTES;
    }
    store_tile<0>(sums, stride);
    store_tile<1>(sums + 64, stride);
    store_tile<2>(sums + TILE * stride, stride);
    store_tile<3>(sums + TILE * stride + 64, stride);
}

// The same for some rows and strips where fewer than 32 may be wanted of either.
static void multiply_some(const char * weights, const char * rows, int64_t width, char * sums, size_t stride,
                          int64_t some_rows, int64_t columns) {
    if (some_rows >= WIDE && columns >= WIDE) {
        return multiply_wide(weights, rows, width, sums, stride);
    }
    alignas(64) float found[WIDE][WIDE];
    multiply_wide(weights, rows, width, (char *) found, sizeof(found[0]));
    for (int64_t row = 0; row < std::min<int64_t>(WIDE, some_rows); row++) {
        memcpy(sums + row * stride, found[row], std::min<int64_t>(WIDE, columns) * sizeof(float));
    }
}

// How many strips a thread takes at a time: few enough to stay in its cache, and about as many for each.
static inline int64_t strips_at_once(int64_t strips, int64_t width, int threads) {
    const int64_t most = std::max<int64_t>(1, LAID_OUT / (width * WIDE * 2));
    const int64_t turns = (strips + most * threads - 1) / (most * threads);
    return (strips + turns * threads - 1) / (turns * threads);
}

// From so many rows on it pays to lay weights out as bfloat16: 1.1 to 1.4 times as fast as bytes (decision 94).
constexpr int64_t WIDE_LEAST = 64;

static inline bool is_wide(const ggml_tensor * node) {
    return node->src[1]->ne[1] >= WIDE_LEAST && uses_tiles();
}

static inline size_t wide_work_size(const ggml_tensor * node) {
    return GGML_PAD(node->src[1]->ne[1], WIDE) * node->src[0]->ne[0] * 2 + 64;
}

template <typename Type> static void wide_product_of(const ggml_compute_params * params, ggml_tensor * node) {
    const ggml_tensor * weights = node->src[0];
    const ggml_tensor * activations = node->src[1];
    const int64_t width = weights->ne[0], columns = weights->ne[1], rows = activations->ne[1];
    const size_t stride = node->nb[1], strip_bytes = width * WIDE * 2;
    char * widened = (char *) GGML_PAD((uintptr_t) params->wdata, 64);
    for (int64_t row = params->ith; row < rows; row += params->nth) {
        widen_row(row_of(activations, row), wide_row(widened, row, width), width);
    }
    if (params->ith == 0) {
        ggml_threadpool_chunk_set(params->threadpool, params->nth);
    }
    ggml_barrier(params->threadpool);

    const Tiles tiles;
    const int64_t strips = (columns + WIDE - 1) / WIDE, taken = strips_at_once(strips, width, params->nth);
    static thread_local std::vector<char> memory;
    memory.resize(std::max(memory.size(), taken * strip_bytes + 64));
    char * laid_out = (char *) GGML_PAD((uintptr_t) memory.data(), 64);
    for (int64_t piece = params->ith; piece * taken < strips; piece = ggml_threadpool_chunk_add(params->threadpool, 1)) {
        const int64_t first = piece * taken, last = std::min(first + taken, strips);
        for (int64_t strip = first; strip < last; strip++) {
            lay_out<Type>(weights, strip * WIDE, laid_out + (strip - first) * strip_bytes);
        }
        for (int64_t row = 0; row < rows; row += WIDE) {
            for (int64_t strip = first; strip < last; strip++) {
                char * to = (char *) node->data + row * stride + strip * WIDE * sizeof(float);
                multiply_some(laid_out + (strip - first) * strip_bytes, wide_row(widened, row, width), width, to, stride,
                              rows - row, columns - strip * WIDE);
            }
        }
    }
}
#endif

}  // namespace slm
