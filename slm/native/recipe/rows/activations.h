// Activations as bytes, for products.cpp.

#pragma once

#include "bytes.h"

#include <cstdint>

namespace slm {

#ifdef SLM_LANES

// How quantized activations lie: for each row its bytes, then a scale for 32 of them, then for each group of weights the
// sum of the bytes: as `Sums` begin with it, or times the scale where the weights have a minimum.
struct Layout {
    size_t scales, sums, stride;
    Layout(int64_t width, int group) {
        scales = width;
        sums = scales + width / 32 * sizeof(float);
        stride = GGML_PAD(sums + width / group * sizeof(float), 64) + 64;  // not a power of two: rows share no cache set
    }
};

static inline const float * row_of(const ggml_tensor * activations, int64_t row) {
    return (const float *) ((const char *) activations->data + row * activations->nb[1]);
}

static inline float through_half(float value) {
    return _cvtsh_ss(_cvtss_sh(value, 0));
}

// The sums of bytes 0 and 1 of each four, and of 2 and 3: `to` is those of 16 bytes, then those of 16 more.
static inline void sum_pairs(const char * bytes, int16_t (&to)[4]) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), _mm256_loadu_si256((const __m256i *) bytes));
    const __m256i two = _mm256_add_epi16(pairs, _mm256_shuffle_epi32(pairs, 0x4E));
    const __m256i four = _mm256_add_epi16(two, _mm256_shuffle_epi32(two, 0xB1));
    const int32_t first = _mm256_extract_epi32(four, 0), second = _mm256_extract_epi32(four, 4);
    memcpy(to, &first, 4);
    memcpy(to + 2, &second, 4);
}

// As llama.cpp does it for this type, so that rows are the same in a batch as alone: 32 (its q8_0, q8_1) or 256 (q8_K)
// activations share a scale. Sums follow when a row's bytes are all written: read at once, in other pieces than they were
// written in, they would not be there yet.
template <typename Type> static void quantize_row(const float * from, char * to, int64_t width, const Layout & layout) {
    float * scales = (float *) (to + layout.scales);
    int32_t * sums = (int32_t *) (to + layout.sums);
    float * scaled_sums = (float *) (to + layout.sums);
    for (int64_t block = 0; block < width; block += Type::BLOCK) {
        lanes most_of = all(0.0f);
        for (int at = 0; at < Type::BLOCK; at += SLM_LANES) {
            most_of = larger(most_of, absolute(load(from + block + at)));
        }
        const float most = largest(most_of), inverse = most > 0 ? 127.0f / most : 0.0f;
        const float exact = Type::BLOCK == 32 ? most / 127.0f : most > 0 ? 1.0f / inverse : 0.0f;
        const float scale = Type::BLOCK == 32 ? through_half(exact) : exact;
        for (int64_t at = block; at < block + Type::BLOCK; at += 32) {
            for (int64_t part = at; part < at + 32; part += SLM_LANES) {
                store_bytes(to + part, multiply(load(from + part), all(inverse)));
            }
            scales[at / 32] = scale;
            if constexpr (Type::MINIMUM) {
                scaled_sums[at / 32] = exact;
            }
        }
    }
    for (int64_t at = 0; at < width; at += 32) {
        int16_t pairs[4];
        sum_pairs(to + at, pairs);
        if constexpr (Type::MINIMUM) {
            static_assert(Type::GROUP == 32);
            const float sum = scaled_sums[at / 32] * (float) (pairs[0] + pairs[1] + pairs[2] + pairs[3]);
            scaled_sums[at / 32] = Type::BLOCK == 32 ? through_half(sum) : sum;
        } else if constexpr (Type::GROUP == 32) {
            sums[at / 32] = Sums<Type>::opposite(pairs[0] + pairs[2], pairs[1] + pairs[3]);
        } else {
            static_assert(Type::GROUP == 16);
            sums[at / 16] = Sums<Type>::opposite(pairs[0], pairs[1]);
            sums[at / 16 + 1] = Sums<Type>::opposite(pairs[2], pairs[3]);
        }
    }
}

#endif

}  // namespace slm
