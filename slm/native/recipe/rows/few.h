// Products of quantized weights and one row of activations, or a few: weights are read once, as they lie, and the time is
// that of the memory.
//
// Two blocks of 32 weights are a vector of bytes. Every thread quantizes the activations for itself, which takes less time
// than waiting for the others.

#pragma once

#include "../fetch.h"
#include "activations.h"
#include "repack.h"
#include "weights.h"

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

namespace slm {

#if defined(SLM_VNNI) && SLM_LANES == 16

constexpr bool HAS_FEW = true;
constexpr int FEW_COLUMNS = 8;  // rows of weights at a time

// 32 half-bytes of each of two blocks.
static inline ints two_nibbles(const uint8_t * first, const uint8_t * second) {
    const __m512i low = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *) first));
    const __m512i both = _mm512_mask_broadcast_i32x4(low, 0xFF00, _mm_loadu_si128((const __m128i *) second));
    const __m512i shifts = _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4);
    return _mm512_and_si512(_mm512_srlv_epi64(both, shifts), _mm512_set1_epi8(15));
}

// The weights of a block and of the next as bytes.
static inline ints two_blocks(const block_q8_0 * from) {
    const __m256i first = _mm256_loadu_si256((const __m256i *) from[0].qs);
    const __m256i second = _mm256_loadu_si256((const __m256i *) from[1].qs);
    return _mm512_xor_si512(_mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1), _mm512_set1_epi8((char) 0x80));
}

static inline ints two_blocks(const block_q4_0 * from) {
    return two_nibbles(from[0].qs, from[1].qs);
}

static inline ints two_blocks(const block_q5_0 * from) {
    uint32_t first, second;
    memcpy(&first, from[0].qh, 4);
    memcpy(&second, from[1].qh, 4);
    const __m512i low = two_nibbles(from[0].qs, from[1].qs);
    return _mm512_mask_add_epi8(low, (uint64_t) second << 32 | first, low, _mm512_set1_epi8(16));
}

// Weights 64 * part to 64 * part + 63 of a block, which begin at 128 * half.
static inline ints sixty_four(const block_q6_K & from, int half, int part) {
    const __m512i two = _mm512_set1_epi8(0x30), low = _mm512_set1_epi8(15);
    const __m512i four_bits = _mm512_loadu_si512(from.ql + 64 * half);
    const __m512i two_bits = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *) (from.qh + 32 * half)));
    if (part == 0) {
        const __m512i high = _mm512_sllv_epi64(two_bits, _mm512_setr_epi64(4, 4, 4, 4, 2, 2, 2, 2));
        return _mm512_or_si512(_mm512_and_si512(four_bits, low), _mm512_and_si512(high, two));
    }
    const __m512i high = _mm512_srlv_epi64(two_bits, _mm512_setr_epi64(0, 0, 0, 0, 2, 2, 2, 2));
    return _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(four_bits, 4), low), _mm512_and_si512(high, two));
}

// 64 activations of a row: as bytes, what `Sums` begin with, and their scales.
struct alignas(64) SixtyFour {
    uint8_t bytes[64];
    int32_t begin[SLM_LANES];
    float scales[SLM_LANES];
};

// A row, quantized as many rows are.
template <typename Type> static void quantize_few(const float * from, SixtyFour * to, int64_t width) {
    const Layout layout(width, Type::GROUP);
    static thread_local std::vector<char> memory;
    memory.resize(std::max(memory.size(), layout.stride));
    char * row = memory.data();
    quantize_row<Type>(from, row, width, layout);
    const float * scales = (const float *) (row + layout.scales);
    const ints zero = _mm512_set1_epi8((char) zero_of<Type>);
    for (int64_t at = 0; at < width / 64; at++) {
        const ints bytes = _mm512_loadu_si512(row + at * 64);
        _mm512_store_si512(to[at].bytes, bytes);
        _mm512_store_si512(to[at].begin, _mm512_sub_epi32(all_ints(0), add_fours(all_ints(0), zero, bytes)));
        store(to[at].scales, _mm512_mask_blend_ps(0xFF00, all(scales[2 * at]), all(scales[2 * at + 1])));
    }
}

// The scales of blocks that follow one another, which begin with them.
template <typename Block> static inline void read_scales(const Block * from, int64_t count, float * to) {
    const __m512i numbers = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i places = _mm512_mullo_epi32(numbers, all_ints(sizeof(Block)));
    for (int64_t at = 0; at < count; at += SLM_LANES) {
        const __mmask16 wanted = count - at >= SLM_LANES ? 0xFFFF : (1u << (count - at)) - 1;
        const __m512i found = _mm512_mask_i32gather_epi32(all_ints(0), wanted, places, from + at, 1);
        store(to + at, _mm512_cvtph_ps(_mm512_cvtepi32_epi16(found)));
    }
}

// The sum of each of eight vectors.
static inline __m256 sums_of_eight(const lanes (&x)[FEW_COLUMNS]) {
    __m256 half[FEW_COLUMNS];
    for (int i = 0; i < FEW_COLUMNS; i++) {
        half[i] = _mm256_add_ps(_mm512_castps512_ps256(x[i]), _mm512_extractf32x8_ps(x[i], 1));
    }
    return sums(half);
}

// Adds the products of 64 weights with those of N rows of activations, whose vectors lie `stride` apart.
template <int N>
static inline void add_sixty_four(ints weights, lanes scale, const SixtyFour * rows, int64_t stride, lanes (&sums)[N]) {
    for (int row = 0; row < N; row++) {
        const SixtyFour & x = rows[row * stride];
        const ints product = add_fours(load_ints((const uint8_t *) x.begin), weights, load_ints(x.bytes));
        sums[row] = multiply_add(to_floats(product), multiply(scale, load(x.scales)), sums[row]);
    }
}

// N rows of activations times one row of weights in blocks of 32, whose scales are read already.
template <int N, typename Block>
static inline void add_row(const Block * blocks, const float * scales, const SixtyFour * rows, int64_t count, lanes (&sums)[N]) {
    for (int64_t at = 0; at < count; at++, blocks += 2, scales += 2) {
        const lanes scale = _mm512_mask_broadcastss_ps(all(scales[0]), 0xFF00, _mm_load_ss(scales + 1));
        add_sixty_four<N>(two_blocks(blocks), scale, rows + at, count, sums);
    }
}

// The same for blocks of 256, where 16 weights share a scale: four lanes.
template <int N>
static inline void add_row(const block_q6_K * blocks, const float *, const SixtyFour * rows, int64_t count, lanes (&sums)[N]) {
    const __m512i fours = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    for (int64_t at = 0; at < count; at += 4, blocks++) {
        const lanes whole = all(half(blocks->d));
        const lanes scales =
            multiply(to_floats(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *) blocks->scales))), whole);
#pragma GCC unroll 4
        for (int part = 0; part < 4; part++) {
            const lanes scale = _mm512_permutexvar_ps(_mm512_add_epi32(fours, all_ints(4 * part)), scales);
            add_sixty_four<N>(sixty_four(*blocks, part / 2, part % 2), scale, rows + at + part, count, sums);
        }
    }
}

// N rows of activations times up to eight rows of weights, of so many vectors of 64.
template <int N, typename Block>
static inline void multiply_few(const Block * blocks, size_t row_bytes, int columns, const float * scales,
                                const SixtyFour * rows, int64_t count, float * to, size_t stride) {
    lanes found[N][FEW_COLUMNS] = {};
    for (int column = 0; column < columns; column++) {
        const char * from = (const char *) blocks + column * row_bytes;
        for (size_t line = 0; line < row_bytes; line += 64) {
            _mm_prefetch(from + FEW_COLUMNS * row_bytes + line, _MM_HINT_T0);
        }
        lanes sums[N] = {};
        add_row<N>((const Block *) from, scales + column * count * 2, rows, count, sums);
        for (int row = 0; row < N; row++) {
            found[row][column] = sums[row];
        }
    }
    for (int row = 0; row < N; row++) {
        _mm256_mask_storeu_ps(to + row * stride, (1u << columns) - 1, sums_of_eight(found[row]));
    }
}

// Lane 2 * row and the one after it belong to a row of eight.
static inline lanes twice(__m256 of_rows) {
    const __m512i each = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    return _mm512_permutexvar_ps(each, _mm512_castps256_ps512(of_rows));
}

static inline void store_eight(float * to, lanes sums) {
    const __m256 pairs = _mm256_hadd_ps(_mm512_castps512_ps256(sums), _mm512_extractf32x8_ps(sums, 1));
    _mm256_storeu_ps(to, _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(pairs), 0xD8)));
}

// Adds the products of 32 weights of eight rows, eight bytes of a row in every vector, with 32 activations.
static inline ints add_eights(ints product, const ints (&weights)[4], const char * from) {
    for (int part = 0; part < 4; part++) {
        int64_t bytes;
        memcpy(&bytes, from + part * 8, 8);
        product = add_fours(product, weights[part], _mm512_set1_epi64(bytes));
    }
    return product;
}

// N rows of activations times eight rows of weights that lie side by side, of so many blocks.
template <int N>
static inline void multiply_few_eights(const block_q4_0x8 * block, const char * rows, const Layout & layout, int64_t count,
                                       float * to, size_t stride) {
    const ints low = _mm512_set1_epi8(15), eight = _mm512_set1_epi8((char) 0x88);
    lanes sums[N] = {};
    for (int64_t at = 0; at < count; at++, block++) {
        slm_fetch(block + count);
        const ints first = _mm512_xor_si512(_mm512_loadu_si512(block->qs), eight);
        const ints second = _mm512_xor_si512(_mm512_loadu_si512(block->qs + 64), eight);
        const ints weights[4] = {_mm512_and_si512(first, low), _mm512_and_si512(second, low),
                                 _mm512_and_si512(_mm512_srli_epi16(first, 4), low),
                                 _mm512_and_si512(_mm512_srli_epi16(second, 4), low)};
        const lanes scale = twice(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) block->d)));
        for (int row = 0; row < N; row++) {
            const char * from = rows + row * layout.stride;
            const ints begin = _mm512_maskz_set1_epi32(0x5555, ((const int32_t *) (from + layout.sums))[at]);
            const ints product = add_eights(begin, weights, from + at * 32);
            const lanes x = all(((const float *) (from + layout.scales))[at]);
            sums[row] = multiply_add(to_floats(product), multiply(scale, x), sums[row]);
        }
    }
    for (int row = 0; row < N; row++) {
        store_eight(to + row * stride, sums[row]);
    }
}

// The scales of eight rows for one group of a block, or what is taken off, from the twelve bytes that both are packed in.
static inline void eight_scales(const uint8_t * packed, __m256 & scales, __m256 & minima) {
    uint32_t a, b, c;
    memcpy(&a, packed, 4);
    memcpy(&b, packed + 4, 4);
    memcpy(&c, packed + 8, 4);
    const uint64_t low = 0x3F3F3F3F, four = 0x0F0F0F0F, two = 0x30303030;
    const uint64_t of_scales = (uint64_t) ((c & four) | (a >> 2 & two)) << 32 | (a & low);
    const uint64_t of_minima = (uint64_t) ((c >> 4 & four) | (b >> 2 & two)) << 32 | (b & low);
    scales = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(of_scales)));
    minima = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(of_minima)));
}

// The same for blocks of 256 with eight groups. A minimum goes into the first lane of a row, and is taken off once.
template <int N>
static inline void multiply_few_eights(const block_q4_Kx8 * block, const char * rows, const Layout & layout, int64_t count,
                                       float * to, size_t stride) {
    const ints low = _mm512_set1_epi8(15);
    lanes sums[N] = {};
    for (int64_t at = 0; at < count; at++, block++) {
        slm_fetch(block + count);
        const __m256 whole = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) block->d));
        const __m256 least = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) block->dmin));
        for (int group = 0; group < 8; group++) {
            ints weights[4];
            for (int part = 0; part < 4; part++) {
                const ints both = _mm512_loadu_si512(block->qs + group / 2 * 256 + part * 64);
                weights[part] = _mm512_and_si512(group % 2 ? _mm512_srli_epi16(both, 4) : both, low);
            }
            __m256 scales, minima;
            eight_scales(block->scales + 12 * group, scales, minima);
            const lanes scale = twice(_mm256_mul_ps(scales, whole));
            const lanes minimum = _mm512_maskz_mov_ps(0x5555, twice(_mm256_mul_ps(minima, least)));
            for (int row = 0; row < N; row++) {
                const char * from = rows + row * layout.stride;
                const ints product = add_eights(all_ints(0), weights, from + at * 256 + group * 32);
                const lanes x = all(((const float *) (from + layout.scales))[at * 8 + group]);
                const lanes sum = all(((const float *) (from + layout.sums))[at * 8 + group]);
                sums[row] = multiply_add(to_floats(product), multiply(scale, x), sums[row]);
                sums[row] = _mm512_fnmadd_ps(minimum, sum, sums[row]);
            }
        }
    }
    for (int row = 0; row < N; row++) {
        store_eight(to + row * stride, sums[row]);
    }
}

// Rows of activations, up to four at a time: weights are in the first-level cache from the first four on.
template <typename Multiply> static inline void in_parts(int64_t count, Multiply multiply) {
    int64_t row = 0;
    for (; row + 4 <= count; row += 4) {
        multiply(std::integral_constant<int, 4>(), row);
    }
    switch (count - row) {
        case 1: return multiply(std::integral_constant<int, 1>(), row);
        case 2: return multiply(std::integral_constant<int, 2>(), row);
        case 3: return multiply(std::integral_constant<int, 3>(), row);
    }
}

// The strips of weights that are a thread's: a share of all, as each takes the same time.
struct Share {
    int64_t first, last;
    Share(const ggml_compute_params * params, int64_t columns) {
        const int64_t strips = (columns + FEW_COLUMNS - 1) / FEW_COLUMNS;
        first = strips * params->ith / params->nth * FEW_COLUMNS;
        last = std::min(strips * (params->ith + 1) / params->nth * FEW_COLUMNS, columns);
    }
};

template <typename Type, typename Block> static void few_of(const ggml_compute_params * params, ggml_tensor * node) {
    const ggml_tensor * weights = node->src[0];
    const ggml_tensor * activations = node->src[1];
    const int64_t width = weights->ne[0], columns = weights->ne[1], rows = activations->ne[1], count = width / 64;
    static thread_local std::vector<char> memory;
    memory.resize(std::max(memory.size(), rows * count * sizeof(SixtyFour) + FEW_COLUMNS * count * 2 * sizeof(float) + 64));
    SixtyFour * quantized = (SixtyFour *) GGML_PAD((uintptr_t) memory.data(), 64);
    float * scales = (float *) (quantized + rows * count);
    for (int64_t row = 0; row < rows; row++) {
        quantize_few<Type>(row_of(activations, row), quantized + row * count, width);
    }
    const size_t stride = node->nb[1] / sizeof(float);
    const Share share(params, columns);
    for (int64_t column = share.first; column < share.last; column += FEW_COLUMNS) {
        const Block * blocks = (const Block *) ((const char *) weights->data + column * weights->nb[1]);
        const int some = std::min<int64_t>(FEW_COLUMNS, columns - column);
        float * to = (float *) node->data + column;
        if constexpr (Type::BLOCK == 32) {
            read_scales(blocks, some * count * 2, scales);
        }
        in_parts(rows, [&](auto number, int64_t row) {
            multiply_few<number>(blocks, weights->nb[1], some, scales, quantized + row * count, count, to + row * stride, stride);
        });
    }
}

template <typename Type, typename Block> static void few_of_eights(const ggml_compute_params * params, ggml_tensor * node) {
    const ggml_tensor * weights = node->src[0];
    const ggml_tensor * activations = node->src[1];
    const int64_t width = weights->ne[0], rows = activations->ne[1];
    const Layout layout(width, Type::GROUP);
    static thread_local std::vector<char> memory;
    memory.resize(std::max(memory.size(), rows * layout.stride));
    for (int64_t row = 0; row < rows; row++) {
        quantize_row<Type>(row_of(activations, row), memory.data() + row * layout.stride, width, layout);
    }
    const size_t stride = node->nb[1] / sizeof(float);
    const Share share(params, weights->ne[1]);
    for (int64_t column = share.first; column < share.last; column += FEW_COLUMNS) {
        const Block * blocks = (const Block *) ((const char *) weights->data + column * weights->nb[1]);
        float * to = (float *) node->data + column;
        in_parts(rows, [&](auto number, int64_t row) {
            const char * from = memory.data() + row * layout.stride;
            multiply_few_eights<number>(blocks, from, layout, width / Type::BLOCK, to + row * stride, stride);
        });
    }
}
#else
constexpr bool HAS_FEW = false;
template <typename Type, typename Block> constexpr decltype(nullptr) few_of = nullptr;
template <typename Type, typename Block> constexpr decltype(nullptr) few_of_eights = nullptr;
#endif

}  // namespace slm
