// The few operations on vectors of floats that our kernels need, as wide as the processor has them.

#pragma once

#include "ggml-cpu-impl.h"
#include "vec.h"

#include <immintrin.h>

namespace slm {

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define SLM_LANES 16
using lanes = __m512;

// Registers are 32: a tile of six rows and four vectors leaves room for what it reads.
constexpr int VECTORS = 4;

static inline lanes load(const float * from) { return _mm512_loadu_ps(from); }
static inline lanes load(const ggml_fp16_t * from) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) from)); }
static inline void store(float * to, lanes x) { _mm512_storeu_ps(to, x); }
static inline lanes all(float x) { return _mm512_set1_ps(x); }
static inline lanes multiply_add(lanes a, lanes b, lanes c) { return _mm512_fmadd_ps(a, b, c); }
static inline lanes multiply(lanes a, lanes b) { return _mm512_mul_ps(a, b); }
static inline lanes add(lanes a, lanes b) { return _mm512_add_ps(a, b); }
static inline lanes divide(lanes a, lanes b) { return _mm512_div_ps(a, b); }
static inline lanes larger(lanes a, lanes b) { return _mm512_max_ps(a, b); }
static inline lanes absolute(lanes x) { return _mm512_abs_ps(x); }
static inline float largest(lanes x) { return _mm512_reduce_max_ps(x); }
static inline float sum(lanes x) { return _mm512_reduce_add_ps(x); }
static inline void store_first(float * to, lanes x, int count) { _mm512_mask_storeu_ps(to, (1u << count) - 1, x); }

// Rows become columns.
static inline void transpose(lanes (&rows)[16]) {
    lanes pair[16], four[16];
    for (int i = 0; i < 16; i += 2) {
        pair[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
        pair[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {  // four[i + j]: column j of rows i..i+3, in every 128 bits
        four[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(pair[i]), _mm512_castps_pd(pair[i + 2])));
        four[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(pair[i]), _mm512_castps_pd(pair[i + 2])));
        four[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(pair[i + 1]), _mm512_castps_pd(pair[i + 3])));
        four[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(pair[i + 1]), _mm512_castps_pd(pair[i + 3])));
    }
    for (int j = 0; j < 4; j++) {
        const lanes low = _mm512_shuffle_f32x4(four[j], four[j + 4], 0x44);         // columns j, j+4 of rows 0..7
        const lanes high = _mm512_shuffle_f32x4(four[j], four[j + 4], 0xEE);        // columns j+8, j+12
        const lanes low2 = _mm512_shuffle_f32x4(four[j + 8], four[j + 12], 0x44);   // the same of rows 8..15
        const lanes high2 = _mm512_shuffle_f32x4(four[j + 8], four[j + 12], 0xEE);
        rows[j] = _mm512_shuffle_f32x4(low, low2, 0x88);
        rows[j + 4] = _mm512_shuffle_f32x4(low, low2, 0xDD);
        rows[j + 8] = _mm512_shuffle_f32x4(high, high2, 0x88);
        rows[j + 12] = _mm512_shuffle_f32x4(high, high2, 0xDD);
    }
}

#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define SLM_LANES 8
using lanes = __m256;

constexpr int VECTORS = 2;

static inline lanes load(const float * from) { return _mm256_loadu_ps(from); }
static inline lanes load(const ggml_fp16_t * from) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) from)); }
static inline void store(float * to, lanes x) { _mm256_storeu_ps(to, x); }
static inline lanes all(float x) { return _mm256_set1_ps(x); }
static inline lanes multiply_add(lanes a, lanes b, lanes c) { return _mm256_fmadd_ps(a, b, c); }
static inline lanes multiply(lanes a, lanes b) { return _mm256_mul_ps(a, b); }
static inline lanes add(lanes a, lanes b) { return _mm256_add_ps(a, b); }
static inline lanes divide(lanes a, lanes b) { return _mm256_div_ps(a, b); }
static inline lanes larger(lanes a, lanes b) { return _mm256_max_ps(a, b); }
static inline lanes absolute(lanes x) { return _mm256_andnot_ps(all(-0.0f), x); }

static inline float largest(lanes x) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

static inline float sum(lanes x) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

static inline void store_first(float * to, lanes x, int count) {
    const __m256i numbers = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    _mm256_maskstore_ps(to, _mm256_cmpgt_epi32(_mm256_set1_epi32(count), numbers), x);
}

// Rows become columns.
static inline void transpose(lanes (&rows)[8]) {
    lanes pair[8], four[8];
    for (int i = 0; i < 8; i += 2) {
        pair[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
        pair[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        four[i] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0x44);
        four[i + 1] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0xEE);
        four[i + 2] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0x44);
        four[i + 3] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0xEE);
    }
    for (int j = 0; j < 4; j++) {
        rows[j] = _mm256_permute2f128_ps(four[j], four[j + 4], 0x20);
        rows[j + 4] = _mm256_permute2f128_ps(four[j], four[j + 4], 0x31);
    }
}
#endif

#ifdef SLM_LANES
// The sum of each of eight vectors.
static inline __m256 sums(const __m256 (&x)[8]) {
    const __m256 low = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
    const __m256 high = _mm256_hadd_ps(_mm256_hadd_ps(x[4], x[5]), _mm256_hadd_ps(x[6], x[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}

static inline lanes power(lanes x) {  // e to the x
    return ggml_v_expf(x);
}
#endif

}  // namespace slm
