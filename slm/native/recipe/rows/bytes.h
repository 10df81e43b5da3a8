// Products of bytes, weights without a sign by activations with one, summed by fours: as wide as the processor has them.
//
// With VNNI that is one instruction. Without it `maddubs` sums two products to 16 bits and saturates: weights of up to six
// bits are safe, and as many of its sums are added in 16 bits as fit. What has to fit is the sum alone, as additions wrap.
// Eight bits would saturate, so these weights keep their sign: it is moved to the activations for every product.

#pragma once

#include "lanes.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace slm {

#ifdef SLM_LANES

#if SLM_LANES == 16
using ints = __m512i;

// Rows of activations at a time: with two vectors of weights 24 of 32 registers are sums.
constexpr int PRODUCT_ROWS = 6;

static inline ints load_ints(const uint8_t * from) { return _mm512_load_si512(from); }
static inline ints all_ints(int32_t x) { return _mm512_set1_epi32(x); }
static inline ints add_ints(ints a, ints b) { return _mm512_add_epi32(a, b); }
static inline ints add_shorts(ints a, ints b) { return _mm512_add_epi16(a, b); }
static inline ints pairs_of_bytes(ints w, ints x) { return _mm512_maddubs_epi16(w, x); }
static inline ints pairs_of_shorts(ints x) { return _mm512_madd_epi16(x, _mm512_set1_epi16(1)); }
static inline ints absolute_bytes(ints x) { return _mm512_abs_epi8(x); }
static inline ints with_sign_of(ints x, ints w) {
    return _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(w), _mm512_setzero_si512(), x);
}
static inline lanes to_floats(ints x) { return _mm512_cvtepi32_ps(x); }

// Numbers of -127..127 as bytes.
static inline void store_bytes(char * to, lanes x) {
    _mm_storeu_si128((__m128i *) to, _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(x)));
}

// 16 rows of 32 bytes, `stride` apart, become eight vectors of 16 times four bytes, `step` bytes apart.
static inline void transpose(const uint8_t * from, size_t stride, uint8_t * to, size_t step) {
    __m512i pair[8], two[8], four[8];
    for (int row = 0; row < 8; row++) {
        const __m256i low = _mm256_loadu_si256((const __m256i *) (from + row * stride));
        const __m256i high = _mm256_loadu_si256((const __m256i *) (from + (row + 8) * stride));
        pair[row] = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    }
    for (int i = 0; i < 4; i++) {
        two[2 * i] = _mm512_unpacklo_epi32(pair[2 * i], pair[2 * i + 1]);
        two[2 * i + 1] = _mm512_unpackhi_epi32(pair[2 * i], pair[2 * i + 1]);
    }
    for (int half = 0; half < 2; half++) {  // rows 0..3 and 8..11, then 4..7 and 12..15
        const __m512i * in = two + 4 * half;
        four[4 * half] = _mm512_unpacklo_epi64(in[0], in[2]);
        four[4 * half + 1] = _mm512_unpackhi_epi64(in[0], in[2]);
        four[4 * half + 2] = _mm512_unpacklo_epi64(in[1], in[3]);
        four[4 * half + 3] = _mm512_unpackhi_epi64(in[1], in[3]);
    }
    const __m512i even = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
    const __m512i odd = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
    for (int i = 0; i < 4; i++) {
        _mm512_storeu_si512(to + step * i, _mm512_permutex2var_epi64(four[i], even, four[i + 4]));
        _mm512_storeu_si512(to + step * (i + 4), _mm512_permutex2var_epi64(four[i], odd, four[i + 4]));
    }
}
#else
using ints = __m256i;

// Eight of 16 registers are sums: with more rows or more vectors nothing was faster.
constexpr int PRODUCT_ROWS = 4;

static inline ints load_ints(const uint8_t * from) { return _mm256_load_si256((const __m256i *) from); }
static inline ints all_ints(int32_t x) { return _mm256_set1_epi32(x); }
static inline ints add_ints(ints a, ints b) { return _mm256_add_epi32(a, b); }
static inline ints add_shorts(ints a, ints b) { return _mm256_add_epi16(a, b); }
static inline ints pairs_of_bytes(ints w, ints x) { return _mm256_maddubs_epi16(w, x); }
static inline ints pairs_of_shorts(ints x) { return _mm256_madd_epi16(x, _mm256_set1_epi16(1)); }
static inline ints absolute_bytes(ints x) { return _mm256_abs_epi8(x); }
static inline ints with_sign_of(ints x, ints w) { return _mm256_sign_epi8(x, w); }
static inline lanes to_floats(ints x) { return _mm256_cvtepi32_ps(x); }

// Numbers of -127..127 as bytes.
static inline void store_bytes(char * to, lanes x) {
    const __m256i numbers = _mm256_cvtps_epi32(x);
    const __m128i shorts = _mm_packs_epi32(_mm256_castsi256_si128(numbers), _mm256_extracti128_si256(numbers, 1));
    _mm_storel_epi64((__m128i *) to, _mm_packs_epi16(shorts, shorts));
}

// Eight rows of 32 bytes, `stride` apart, become eight vectors of eight times four bytes, `step` bytes apart.
static inline void transpose(const uint8_t * from, size_t stride, uint8_t * to, size_t step) {
    lanes rows[8];
    for (int row = 0; row < 8; row++) {
        rows[row] = load((const float *) (from + row * stride));
    }
    transpose(rows);
    for (int i = 0; i < 8; i++) {
        store((float *) (to + step * i), rows[i]);
    }
}
#endif

#if SLM_LANES == 16 && defined(__AVX512VNNI__)
#define SLM_VNNI
static inline ints add_fours(ints sum, ints w, ints x) { return _mm512_dpbusd_epi32(sum, w, x); }
#elif SLM_LANES == 8 && defined(__AVXVNNI__)
#define SLM_VNNI
static inline ints add_fours(ints sum, ints w, ints x) { return _mm256_dpbusd_avx_epi32(sum, w, x); }
#endif

// What a byte is when its weight is zero, and whether bytes of a type have signs instead.
#ifdef SLM_VNNI
template <typename Type> constexpr bool has_signs = false;
#else
template <typename Type> constexpr bool has_signs = Type::BITS == 8;
#endif
template <typename Type> constexpr int zero_of = Type::MINIMUM || has_signs<Type> ? 0 : 1 << (Type::BITS - 1);

// Sums of the products of a type's weights. `begin` takes what `opposite` says of the activations: zero_of<Type> times
// their sum, to be taken off. `add` puts four more products into every lane, RUN times at most; `end` gives int32.
template <typename Type> struct Sums {
#ifdef SLM_VNNI
    static constexpr int RUN = Type::GROUP / 4;
#else
    static constexpr int MOST = 2 * 127 * (Type::MINIMUM ? (1 << Type::BITS) - 1 : 1 << (Type::BITS - 1));
    static constexpr int RUN = has_signs<Type> ? Type::GROUP / 4 : std::min(Type::GROUP / 4, 32767 / MOST);
#endif

    // first, second: the sums of bytes 0 and 1 of each four, and of 2 and 3, which add up in different halves of a lane.
    static int32_t opposite(int16_t first, int16_t second) {
#ifdef SLM_VNNI
        return -zero_of<Type> * (first + second);
#else
        const int16_t both[2] = {(int16_t) (-zero_of<Type> * first), (int16_t) (-zero_of<Type> * second)};
        int32_t packed;
        memcpy(&packed, both, sizeof(packed));
        return packed;
#endif
    }

    static ints begin(int32_t opposite) { return all_ints(opposite); }

    static void add(ints & sum, ints w, ints x) {
#ifdef SLM_VNNI
        sum = add_fours(sum, w, x);
#else
        if constexpr (has_signs<Type>) {
            sum = add_ints(sum, pairs_of_shorts(pairs_of_bytes(absolute_bytes(w), with_sign_of(x, w))));
        } else {
            sum = add_shorts(sum, pairs_of_bytes(w, x));
        }
        asm("" : "+v"(sum));  // or GCC adds later what it multiplies now, and registers do not suffice
#endif
    }

    static ints end(ints sum) {
#ifdef SLM_VNNI
        return sum;
#else
        return has_signs<Type> ? sum : pairs_of_shorts(sum);
#endif
    }
};

#endif

}  // namespace slm
