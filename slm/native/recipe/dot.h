// Included in llama.cpp's ggml-cpu/arch/x86/repack.cpp by slm/native/recipe/build.cmake: q4_0 without moving signs.
//
// x86 multiplies unsigned by signed bytes. llama.cpp takes the activations' absolute values and gives their signs to the
// weights, for every product anew. Here the weights of q4_0 come as 0..15 instead of -8..7, and eight times the sum of the
// activations, which all columns share, is taken off. These are integers: not a bit of the result changes.

#pragma once

// `slm doctor` asks for this name.
extern "C" __attribute__((visibility("default"))) const int slm_kernels = 1;

#if defined(__AVX2__)

#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
// Four products of bytes, w unsigned and x signed, each summed by fours: int32 lanes.
static inline __m256i slm_sum(__m256i w3, __m256i x3, __m256i w2, __m256i x2, __m256i w1, __m256i x1, __m256i w0, __m256i x0) {
    const __m256i begun = _mm256_dpbusd_epi32(_mm256_dpbusd_epi32(_mm256_setzero_si256(), w3, x3), w2, x2);
    return _mm256_dpbusd_epi32(_mm256_dpbusd_epi32(begun, w1, x1), w0, x0);
}

static inline __m256i slm_difference(__m256i a, __m256i b) {
    return _mm256_sub_epi32(a, b);
}
#else
// Four products of bytes, w 0..15 and x signed, each summed by pairs: int16 lanes, at most 4 * 2 * 15 * 128 = 15,360.
static inline __m256i slm_sum(__m256i w3, __m256i x3, __m256i w2, __m256i x2, __m256i w1, __m256i x1, __m256i w0, __m256i x0) {
    return _mm256_add_epi16(
        _mm256_add_epi16(_mm256_maddubs_epi16(w3, x3), _mm256_maddubs_epi16(w2, x2)),
        _mm256_add_epi16(_mm256_maddubs_epi16(w1, x1), _mm256_maddubs_epi16(w0, x0)));
}

// int16 pairs of both, subtracted and summed: int32 lanes.
static inline __m256i slm_difference(__m256i a, __m256i b) {
    return _mm256_madd_epi16(_mm256_set1_epi16(1), _mm256_sub_epi16(a, b));
}
#endif

// One product of signed bytes, as llama.cpp computes it.
static inline __m256i slm_add_product(__m256i sum, __m256i x, __m256i w) {
    return mul_sum_i8_pairs_acc_int32x8(sum, x, w);
}

#if defined(__AVX512BW__)
// The same with twice the lanes.
#if defined(__AVX512VNNI__)
static inline __m512i slm_sum(__m512i w3, __m512i x3, __m512i w2, __m512i x2, __m512i w1, __m512i x1, __m512i w0, __m512i x0) {
    const __m512i begun = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), w3, x3), w2, x2);
    return _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(begun, w1, x1), w0, x0);
}

static inline __m512i slm_difference(__m512i a, __m512i b) {
    return _mm512_sub_epi32(a, b);
}
#else
static inline __m512i slm_sum(__m512i w3, __m512i x3, __m512i w2, __m512i x2, __m512i w1, __m512i x1, __m512i w0, __m512i x0) {
    return _mm512_add_epi16(
        _mm512_add_epi16(_mm512_maddubs_epi16(w3, x3), _mm512_maddubs_epi16(w2, x2)),
        _mm512_add_epi16(_mm512_maddubs_epi16(w1, x1), _mm512_maddubs_epi16(w0, x0)));
}

static inline __m512i slm_difference(__m512i a, __m512i b) {
    return _mm512_madd_epi16(_mm512_set1_epi16(1), _mm512_sub_epi16(a, b));
}
#endif

static inline __m512i slm_add_product(__m512i sum, __m512i x, __m512i w) {
    return mul_sum_i8_pairs_acc_int32x16(sum, x, w);
}
#endif

// The sum of four products of activations x and weights w of a block, as int32 lanes.
template <typename block_tx8, typename lanes>
static inline lanes slm_dot(lanes x3, lanes w3, lanes x2, lanes w2, lanes x1, lanes w1, lanes x0, lanes w0) {
    if constexpr (std::is_same_v<block_tx8, block_q4_0x8>) {
        lanes eight;
        memset(&eight, 8, sizeof(eight));
        const lanes more = slm_sum(eight, x3, eight, x2, eight, x1, eight, x0);
        return slm_difference(slm_sum(w3, x3, w2, x2, w1, x1, w0, x0), more);
    } else {
        const lanes begun = slm_add_product(slm_add_product(lanes(), x3, w3), x2, w2);
        return slm_add_product(slm_add_product(begun, x1, w1), x0, w0);
    }
}
#endif
