// How the weights of each quantized type become bytes without a sign, a scale for each group and, for some, a minimum.
//
// A weight is scale * (byte - zero) - minimum, with a `zero` in the middle of the BITS where there is no minimum. `expand`
// does it for one block of one row. The layouts are those of
// ggml-common.h, and of repack.h where llama.cpp lays eight rows side by side when it loads a model.

#pragma once

#include "bytes.h"
#include "ggml-common.h"
#include "ggml-cpu-impl.h"
#include "simd-mappings.h"

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace slm {

// Low half-bytes of 16 bytes, then the high ones: 32 values of 0..15.
static inline __m256i nibbles(__m128i packed) {
    const __m128i low = _mm_set1_epi8(15);
    return _mm256_set_m128i(_mm_and_si128(_mm_srli_epi16(packed, 4), low), _mm_and_si128(packed, low));
}

// 16 in the bytes that have all of these bits.
static inline __m256i sixteen_where(__m256i bytes, __m256i bits) {
    return _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(bytes, bits), bits), _mm256_set1_epi8(16));
}

// 16 where a bit is set: 32 bytes.
static inline __m256i fifth_bits(const uint8_t * bits) {
    uint32_t all;
    memcpy(&all, bits, 4);
    const __m256i each = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    return sixteen_where(_mm256_shuffle_epi8(_mm256_set1_epi32(all), each), _mm256_set1_epi64x(0x8040201008040201));
}

static inline float half(ggml_half value) {
    return _cvtsh_ss(value);
}

// A row of blocks that lies by itself.
template <typename Block> struct PlainRow {
    const Block * blocks;
    PlainRow(const void * data, size_t stride, int64_t row) : blocks((const Block *) ((const char *) data + row * stride)) {}
};

struct Q8_0 : PlainRow<block_q8_0> {
    using PlainRow::PlainRow;
    static constexpr int BLOCK = 32, GROUP = 32, BITS = 8;
    static constexpr bool MINIMUM = false;
    void expand(int64_t at, uint8_t * bytes, float * scale, float *) const {
        const block_q8_0 & block = blocks[at];
        const __m256i quants = _mm256_loadu_si256((const __m256i *) block.qs);
        const __m256i zero = _mm256_set1_epi8((char) zero_of<Q8_0>);
        _mm256_storeu_si256((__m256i *) bytes, _mm256_xor_si256(quants, zero));
        *scale = half(block.d);
    }
};

struct Q4_0 : PlainRow<block_q4_0> {
    using PlainRow::PlainRow;
    static constexpr int BLOCK = 32, GROUP = 32, BITS = 4;
    static constexpr bool MINIMUM = false;
    void expand(int64_t at, uint8_t * bytes, float * scale, float *) const {
        const block_q4_0 & block = blocks[at];
        _mm256_storeu_si256((__m256i *) bytes, nibbles(_mm_loadu_si128((const __m128i *) block.qs)));
        *scale = half(block.d);
    }
};

struct Q4_1 : PlainRow<block_q4_1> {
    using PlainRow::PlainRow;
    static constexpr int BLOCK = 32, GROUP = 32, BITS = 4;
    static constexpr bool MINIMUM = true;
    void expand(int64_t at, uint8_t * bytes, float * scale, float * minimum) const {
        const block_q4_1 & block = blocks[at];
        _mm256_storeu_si256((__m256i *) bytes, nibbles(_mm_loadu_si128((const __m128i *) block.qs)));
        *scale = half(block.GGML_COMMON_AGGR_U.GGML_COMMON_AGGR_S.d);
        *minimum = -half(block.GGML_COMMON_AGGR_U.GGML_COMMON_AGGR_S.m);
    }
};

struct Q5_0 : PlainRow<block_q5_0> {
    using PlainRow::PlainRow;
    static constexpr int BLOCK = 32, GROUP = 32, BITS = 5;
    static constexpr bool MINIMUM = false;
    void expand(int64_t at, uint8_t * bytes, float * scale, float *) const {
        const block_q5_0 & block = blocks[at];
        const __m256i low = nibbles(_mm_loadu_si128((const __m128i *) block.qs));
        _mm256_storeu_si256((__m256i *) bytes, _mm256_or_si256(low, fifth_bits(block.qh)));
        *scale = half(block.d);
    }
};

struct Q5_1 : PlainRow<block_q5_1> {
    using PlainRow::PlainRow;
    static constexpr int BLOCK = 32, GROUP = 32, BITS = 5;
    static constexpr bool MINIMUM = true;
    void expand(int64_t at, uint8_t * bytes, float * scale, float * minimum) const {
        const block_q5_1 & block = blocks[at];
        const __m256i low = nibbles(_mm_loadu_si128((const __m128i *) block.qs));
        _mm256_storeu_si256((__m256i *) bytes, _mm256_or_si256(low, fifth_bits(block.qh)));
        *scale = half(block.GGML_COMMON_AGGR_U.GGML_COMMON_AGGR_S.d);
        *minimum = -half(block.GGML_COMMON_AGGR_U.GGML_COMMON_AGGR_S.m);
    }
};

// Scale and minimum number `at` of eight, six bits each, from the twelve bytes in which K types keep them.
static inline void six_bits(const uint8_t * packed, int at, int * scale, int * minimum) {
    if (at < 4) {
        *scale = packed[at] & 63;
        *minimum = packed[at + 4] & 63;
    } else {
        *scale = (packed[at + 4] & 15) | ((packed[at - 4] >> 6) << 4);
        *minimum = (packed[at + 4] >> 4) | ((packed[at] >> 6) << 4);
    }
}

// 32 bytes of half-bytes are two groups: the low ones, then the high ones.
static inline void two_groups(__m256i packed, uint8_t * bytes) {
    const __m256i low = _mm256_set1_epi8(15);
    _mm256_storeu_si256((__m256i *) bytes, _mm256_and_si256(packed, low));
    _mm256_storeu_si256((__m256i *) (bytes + 32), _mm256_and_si256(_mm256_srli_epi16(packed, 4), low));
}

struct Q4_K : PlainRow<block_q4_K> {
    using PlainRow::PlainRow;
    static constexpr int BLOCK = 256, GROUP = 32, BITS = 4;
    static constexpr bool MINIMUM = true;
    void expand(int64_t at, uint8_t * bytes, float * scale, float * minimum) const {
        const block_q4_K & block = blocks[at];
        const float d = half(block.GGML_COMMON_AGGR_U.GGML_COMMON_AGGR_S.d);
        const float least = half(block.GGML_COMMON_AGGR_U.GGML_COMMON_AGGR_S.dmin);
        for (int group = 0; group < 8; group++) {
            int s, m;
            six_bits(block.scales, group, &s, &m);
            scale[group] = d * s;
            minimum[group] = least * m;
        }
        for (int pair = 0; pair < 4; pair++) {
            two_groups(_mm256_loadu_si256((const __m256i *) (block.qs + 32 * pair)), bytes + 64 * pair);
        }
    }
};

struct Q5_K : PlainRow<block_q5_K> {
    using PlainRow::PlainRow;
    static constexpr int BLOCK = 256, GROUP = 32, BITS = 5;
    static constexpr bool MINIMUM = true;
    void expand(int64_t at, uint8_t * bytes, float * scale, float * minimum) const {
        const block_q5_K & block = blocks[at];
        const float d = half(block.GGML_COMMON_AGGR_U.GGML_COMMON_AGGR_S.d);
        const float least = half(block.GGML_COMMON_AGGR_U.GGML_COMMON_AGGR_S.dmin);
        const __m256i high = _mm256_loadu_si256((const __m256i *) block.qh);
        for (int pair = 0; pair < 4; pair++) {
            two_groups(_mm256_loadu_si256((const __m256i *) (block.qs + 32 * pair)), bytes + 64 * pair);
        }
        for (int group = 0; group < 8; group++) {
            int s, m;
            six_bits(block.scales, group, &s, &m);
            scale[group] = d * s;
            minimum[group] = least * m;
            const __m256i fifth = sixteen_where(high, _mm256_set1_epi8((char) (1 << group)));
            __m256i * part = (__m256i *) (bytes + 32 * group);
            _mm256_storeu_si256(part, _mm256_or_si256(_mm256_loadu_si256(part), fifth));
        }
    }
};

struct Q6_K : PlainRow<block_q6_K> {
    using PlainRow::PlainRow;
    static constexpr int BLOCK = 256, GROUP = 16, BITS = 6;
    static constexpr bool MINIMUM = false;
    void expand(int64_t at, uint8_t * bytes, float * scale, float *) const {
        const block_q6_K & block = blocks[at];
        const float d = half(block.d);
        for (int group = 0; group < 16; group++) {
            scale[group] = d * block.scales[group];
        }
        const __m256i low = _mm256_set1_epi8(15), two = _mm256_set1_epi8(0x30);
        for (int part = 0; part < 2; part++) {
            const __m256i a = _mm256_loadu_si256((const __m256i *) (block.ql + 64 * part));
            const __m256i b = _mm256_loadu_si256((const __m256i *) (block.ql + 64 * part + 32));
            const __m256i h = _mm256_loadu_si256((const __m256i *) (block.qh + 32 * part));
            __m256i * out = (__m256i *) (bytes + 128 * part);
            const __m256i a_high = _mm256_srli_epi16(a, 4), b_high = _mm256_srli_epi16(b, 4), h_high = _mm256_srli_epi16(h, 2);
            _mm256_storeu_si256(out + 0, _mm256_or_si256(_mm256_and_si256(a, low), _mm256_and_si256(_mm256_slli_epi16(h, 4), two)));
            _mm256_storeu_si256(out + 1, _mm256_or_si256(_mm256_and_si256(b, low), _mm256_and_si256(_mm256_slli_epi16(h, 2), two)));
            _mm256_storeu_si256(out + 2, _mm256_or_si256(_mm256_and_si256(a_high, low), _mm256_and_si256(h, two)));
            _mm256_storeu_si256(out + 3, _mm256_or_si256(_mm256_and_si256(b_high, low), _mm256_and_si256(h_high, two)));
        }
    }
};

// One of eight rows that lie side by side, eight bytes of each in turn.
template <typename Block> struct RowOfEight {
    const Block * blocks;
    int row;
    RowOfEight(const void * data, size_t stride, int64_t row)
        : blocks((const Block *) ((const char *) data + row / 8 * 8 * stride)), row((int) (row % 8)) {}
    __m128i sixteen(const uint8_t * quants) const {  // 16 bytes of this row, from where its first eight lie
        return _mm_unpacklo_epi64(_mm_loadl_epi64((const __m128i *) (quants + 8 * row)),
                                  _mm_loadl_epi64((const __m128i *) (quants + 64 + 8 * row)));
    }
};

struct Q4_0x8 : RowOfEight<block_q4_0x8> {
    using RowOfEight::RowOfEight;
    static constexpr int BLOCK = 32, GROUP = 32, BITS = 4;
    static constexpr bool MINIMUM = false;
    void expand(int64_t at, uint8_t * bytes, float * scale, float *) const {
        const block_q4_0x8 & block = blocks[at];
        const __m128i packed = sixteen((const uint8_t *) block.qs);
        _mm256_storeu_si256((__m256i *) bytes, nibbles(_mm_xor_si128(packed, _mm_set1_epi8((char) 0x88))));
        *scale = half(block.d[row]);
    }
};

struct Q4_Kx8 : RowOfEight<block_q4_Kx8> {
    using RowOfEight::RowOfEight;
    static constexpr int BLOCK = 256, GROUP = 32, BITS = 4;
    static constexpr bool MINIMUM = true;
    void expand(int64_t at, uint8_t * bytes, float * scale, float * minimum) const {
        const block_q4_Kx8 & block = blocks[at];
        const float d = half(block.d[row]), least = half(block.dmin[row]);
        for (int group = 0; group < 8; group++) {
            int s, m;
            six_bits(block.scales + 12 * group, row, &s, &m);
            scale[group] = d * s;
            minimum[group] = least * m;
        }
        for (int pair = 0; pair < 4; pair++) {
            const uint8_t * quants = block.qs + 256 * pair;
            two_groups(_mm256_set_m128i(sixteen(quants + 128), sixteen(quants)), bytes + 64 * pair);
        }
    }
};

}  // namespace slm
