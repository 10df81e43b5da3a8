// Products of quantized weights and many rows of activations, for AVX-512 with VNNI.
//
// Activations are quantized once, in parts of 32 or 256 with a scale for each.
// A thread takes a strip of 32 rows of weights, lays it out as bytes without a sign so that one load has four bytes of
// each of 16 rows, and multiplies it with all activations, six rows at a time, sums held in registers. The strip stays in
// the second-level cache meanwhile. Laying it out takes about a fiftieth of the time at 512 rows.

#include "products.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)

#include "ggml-backend-impl.h"
#include "repack.h"
#include "weights.h"

#include <algorithm>
#include <vector>

namespace slm {

constexpr int STRIP = 32;  // rows of weights, two vectors of 16
constexpr int ROWS = 6;    // rows of activations at a time: 24 of 32 registers are sums
// Fewer rows go llama.cpp's way: what it takes to lay out the weights would not pay. It has good kernels for a few rows of
// those weights that it lays out itself when it loads a model. Measured with SmolLM2-135M and Gemma 3 270m.
constexpr int64_t LEAST_ROWS = 6, LEAST_ROWS_OF_EIGHT = 8;
constexpr int64_t LEAST_PART = 32;  // rows that a strip is laid out for by one thread, where more threads share them

// How quantized activations lie: for each row its bytes, then a scale for 32 of them, then for each group of weights the
// sum of the bytes: times -ZERO as a number, or times the scale where the weights have a minimum.
struct Layout {
    size_t scales, sums, stride;
    Layout(int64_t width, int group) {
        scales = width;
        sums = scales + width / 32 * sizeof(float);
        stride = GGML_PAD(sums + width / group * sizeof(float), 64) + 64;  // not a power of two: rows share no cache set
    }
};

static inline float through_half(float value) {
    return _cvtsh_ss(_cvtss_sh(value, 0));
}

// As llama.cpp does it for this type, so that rows are the same in a batch as alone: 32 (its q8_0, q8_1) or 256 (q8_K)
// activations share a scale.
template <typename Type> static void quantize_row(const float * from, char * to, int64_t width, const Layout & layout) {
    float * scales = (float *) (to + layout.scales);
    int32_t * sums = (int32_t *) (to + layout.sums);
    float * scaled_sums = (float *) (to + layout.sums);
    for (int64_t block = 0; block < width; block += Type::BLOCK) {
        __m512 most_of = _mm512_setzero_ps();
        for (int at = 0; at < Type::BLOCK; at += 16) {
            most_of = _mm512_max_ps(most_of, _mm512_abs_ps(_mm512_loadu_ps(from + block + at)));
        }
        const float most = _mm512_reduce_max_ps(most_of), inverse = most > 0 ? 127.0f / most : 0.0f;
        const float exact = Type::BLOCK == 32 ? most / 127.0f : most > 0 ? 1.0f / inverse : 0.0f;
        const float scale = Type::BLOCK == 32 ? through_half(exact) : exact;
        for (int64_t at = block; at < block + Type::BLOCK; at += 32) {
            const __m512 a = _mm512_loadu_ps(from + at), b = _mm512_loadu_ps(from + at + 16);
            const __m512i low = _mm512_cvtps_epi32(_mm512_mul_ps(a, _mm512_set1_ps(inverse)));
            const __m512i high = _mm512_cvtps_epi32(_mm512_mul_ps(b, _mm512_set1_ps(inverse)));
            _mm_storeu_si128((__m128i *) (to + at), _mm512_cvtsepi32_epi8(low));
            _mm_storeu_si128((__m128i *) (to + at + 16), _mm512_cvtsepi32_epi8(high));
            scales[at / 32] = scale;
            const int first = _mm512_reduce_add_epi32(low), second = _mm512_reduce_add_epi32(high);
            if constexpr (Type::MINIMUM) {
                static_assert(Type::GROUP == 32);
                const float sum = exact * (float) (first + second);
                scaled_sums[at / 32] = Type::BLOCK == 32 ? through_half(sum) : sum;
            } else if constexpr (Type::GROUP == 32) {
                sums[at / 32] = -Type::ZERO * (first + second);
            } else {
                static_assert(Type::GROUP == 16);
                sums[at / 16] = -Type::ZERO * first;
                sums[at / 16 + 1] = -Type::ZERO * second;
            }
        }
    }
}

// 16 rows of 32 bytes, `stride` apart, become eight vectors of 16 times four bytes, 128 bytes apart.
static inline void transpose(const uint8_t * from, size_t stride, uint8_t * to) {
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
        _mm512_storeu_si512(to + 128 * i, _mm512_permutex2var_epi64(four[i], even, four[i + 4]));
        _mm512_storeu_si512(to + 128 * (i + 4), _mm512_permutex2var_epi64(four[i], odd, four[i + 4]));
    }
}

// A strip of weights as the kernel reads it.
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
                transpose(block[0] + part, Type::BLOCK, to);
                transpose(block[16] + part, Type::BLOCK, to + 64);
            }
        }
    }
};

// Weights that are needed next: `step` bytes for each group of those in hand.
struct Ahead {
    const char * from;
    size_t step;
};

// Where sums go: rows `stride` floats apart, and which of the strip's columns there are.
struct Out {
    float * to;
    size_t stride;
    __mmask16 first, second;
};

// The sums of N rows of activations with one strip.
template <typename Type, int N>
static void multiply(const Strip & strip, const char * rows, const Layout & layout, int64_t width, Out out, Ahead ahead) {
    __m512 sums[N][2];
    for (int row = 0; row < N; row++) {
        sums[row][0] = sums[row][1] = _mm512_setzero_ps();
    }
    const uint8_t * bytes = strip.bytes;
    for (int64_t group = 0; group < width / Type::GROUP; group++) {
        for (size_t at = 0; at < ahead.step; at += 64) {
            _mm_prefetch(ahead.from + group * ahead.step + at, _MM_HINT_T1);
        }
        __m512i products[N][2];
        for (int row = 0; row < N; row++) {
            __m512i begin = _mm512_setzero_si512();
            if constexpr (!Type::MINIMUM) {
                begin = _mm512_set1_epi32(((const int32_t *) (rows + row * layout.stride + layout.sums))[group]);
            }
            products[row][0] = products[row][1] = begin;
        }
        for (int four = 0; four < Type::GROUP / 4; four++) {
            const __m512i a = _mm512_load_si512(bytes), b = _mm512_load_si512(bytes + 64);
            bytes += 128;
            for (int row = 0; row < N; row++) {
                int32_t values;
                if (four == 0) {  // the next rows are far apart: the processor does not see them coming
                    _mm_prefetch(rows + (N + row) * layout.stride + group * Type::GROUP, _MM_HINT_T0);
                }
                memcpy(&values, rows + row * layout.stride + group * Type::GROUP + 4 * four, 4);
                const __m512i x = _mm512_set1_epi32(values);
                products[row][0] = _mm512_dpbusd_epi32(products[row][0], a, x);
                products[row][1] = _mm512_dpbusd_epi32(products[row][1], b, x);
            }
        }
        const __m512 a = _mm512_load_ps(strip.scales + group * STRIP), b = _mm512_load_ps(strip.scales + group * STRIP + 16);
        for (int row = 0; row < N; row++) {
            const float * scales = (const float *) (rows + row * layout.stride + layout.scales);
            const __m512 x = _mm512_set1_ps(scales[group * Type::GROUP / 32]);
            sums[row][0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products[row][0]), _mm512_mul_ps(a, x), sums[row][0]);
            sums[row][1] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products[row][1]), _mm512_mul_ps(b, x), sums[row][1]);
        }
        if constexpr (Type::MINIMUM) {
            const __m512 c = _mm512_load_ps(strip.minima + group * STRIP), d = _mm512_load_ps(strip.minima + group * STRIP + 16);
            for (int row = 0; row < N; row++) {
                const __m512 x = _mm512_set1_ps(((const float *) (rows + row * layout.stride + layout.sums))[group]);
                sums[row][0] = _mm512_fnmadd_ps(c, x, sums[row][0]);
                sums[row][1] = _mm512_fnmadd_ps(d, x, sums[row][1]);
            }
        }
    }
    for (int row = 0; row < N; row++) {
        _mm512_mask_storeu_ps(out.to + row * out.stride, out.first, sums[row][0]);
        _mm512_mask_storeu_ps(out.to + row * out.stride + 16, out.second, sums[row][1]);
    }
}

// How many parts the rows of activations fall into, so that there are enough pieces of work for all threads.
static int64_t row_parts(int64_t strips, int64_t rows, int threads) {
    const int64_t wanted = threads == 1 ? 1 : (4 * threads + strips - 1) / strips;
    return std::max<int64_t>(1, std::min(wanted, rows / LEAST_PART));
}

template <typename Type> static void product_of(const ggml_compute_params * params, ggml_tensor * node) {
    const ggml_tensor * weights = node->src[0];
    const ggml_tensor * activations = node->src[1];
    const int64_t width = weights->ne[0], columns = weights->ne[1], rows = activations->ne[1];
    const Layout layout(width, Type::GROUP);
    char * quantized = (char *) GGML_PAD((uintptr_t) params->wdata, 64);
    for (int64_t row = params->ith; row < rows; row += params->nth) {
        const float * from = (const float *) ((const char *) activations->data + row * activations->nb[1]);
        quantize_row<Type>(from, quantized + row * layout.stride, width, layout);
    }
    if (params->ith == 0) {
        ggml_threadpool_chunk_set(params->threadpool, params->nth);
    }
    ggml_barrier(params->threadpool);

    const int64_t strips = (columns + STRIP - 1) / STRIP, parts = row_parts(strips, rows, params->nth);
    const int64_t part_rows = (rows + parts - 1) / parts;
    static thread_local Strip strip;
    strip.resize(width, Type::GROUP);
    int64_t filled = -1;
    for (int64_t piece = params->ith; piece < strips * parts; piece = ggml_threadpool_chunk_add(params->threadpool, 1)) {
        const int64_t first = piece / parts * STRIP, begin = piece % parts * part_rows;
        const int64_t end = std::min(begin + part_rows, rows);
        if (filled != first) {
            strip.fill<Type>(weights, first);
            filled = first;
        }
        const int64_t left = std::min<int64_t>(STRIP, columns - first);
        Out out{nullptr, node->nb[1] / sizeof(float), 0xFFFF, 0xFFFF};
        out.first = left >= 16 ? 0xFFFF : (1 << left) - 1;
        out.second = left >= 32 ? 0xFFFF : left > 16 ? (1 << (left - 16)) - 1 : 0;
        // The strip that is likely the next of this thread: the memory is read while this one is multiplied.
        const int64_t later = first + params->nth * STRIP;
        Ahead ahead{nullptr, 0};
        if (parts == 1 && later + STRIP <= columns) {
            ahead = {(const char *) weights->data + later * weights->nb[1], STRIP * weights->nb[1] / (width / Type::GROUP)};
        }
        for (int64_t row = begin, count; row < end; row += count) {
            const int64_t left_rows = end - row, groups = (left_rows + ROWS - 1) / ROWS;
            count = (left_rows + groups - 1) / groups;  // 8 rows are 4 and 4, not 6 and 2
            const char * from = quantized + row * layout.stride;
            out.to = (float *) node->data + row * out.stride + first;
#define SLM_ROWS(N) case N: multiply<Type, N>(strip, from, layout, width, out, ahead); break
            switch (count) {
                SLM_ROWS(1);
                SLM_ROWS(2);
                SLM_ROWS(3);
                SLM_ROWS(4);
                SLM_ROWS(5);
                SLM_ROWS(6);
            }
#undef SLM_ROWS
            ahead.step = 0;
        }
    }
}

using Product = void (*)(const ggml_compute_params *, ggml_tensor *);

static bool lies_in_eights(const ggml_tensor * weights) {
    return weights->buffer && weights->buffer->buft == ggml_backend_cpu_repack_buffer_type();
}

// The kernel for weights as they lie, or none.
static Product product_for(const ggml_tensor * weights) {
    if (lies_in_eights(weights)) {
        if (weights->ne[1] % 8) {
            return nullptr;
        }
        switch (weights->type) {
            case GGML_TYPE_Q4_0: return product_of<Q4_0x8>;
            case GGML_TYPE_Q4_K: return product_of<Q4_Kx8>;
            default: return nullptr;
        }
    }
    if (weights->buffer && !ggml_backend_buft_is_host(weights->buffer->buft)) {
        return nullptr;
    }
    switch (weights->type) {
        case GGML_TYPE_Q4_0: return product_of<Q4_0>;
        case GGML_TYPE_Q4_1: return product_of<Q4_1>;
        case GGML_TYPE_Q5_0: return product_of<Q5_0>;
        case GGML_TYPE_Q5_1: return product_of<Q5_1>;
        case GGML_TYPE_Q8_0: return product_of<Q8_0>;
        case GGML_TYPE_Q4_K: return product_of<Q4_K>;
        case GGML_TYPE_Q5_K: return product_of<Q5_K>;
        case GGML_TYPE_Q6_K: return product_of<Q6_K>;
        default: return nullptr;
    }
}

bool has_products() {
    return true;
}

bool knows_product(const ggml_tensor * node) {
    const ggml_tensor * weights = node->src[0];
    const ggml_tensor * activations = node->src[1];
    const int64_t least = lies_in_eights(weights) ? LEAST_ROWS_OF_EIGHT : LEAST_ROWS;
    return activations->type == GGML_TYPE_F32 && node->type == GGML_TYPE_F32 && activations->ne[1] >= least &&
           activations->ne[2] == 1 && activations->ne[3] == 1 && weights->ne[2] == 1 && weights->ne[3] == 1 &&
           ggml_get_op_params_i32(node, 1) == 0 && activations->nb[0] == sizeof(float) && node->nb[0] == sizeof(float) &&
           weights->nb[1] == ggml_row_size(weights->type, weights->ne[0]) && weights->ne[0] % 32 == 0 &&
           product_for(weights) != nullptr;
}

size_t product_work_size(const ggml_tensor * node) {
    return node->src[1]->ne[1] * Layout(node->src[0]->ne[0], 16).stride + 64;
}

void product(const ggml_compute_params * params, ggml_tensor * node) {
    product_for(node->src[0])(params, node);
}

}  // namespace slm

#else

namespace slm {

bool has_products() {
    return false;
}

bool knows_product(const ggml_tensor *) {
    return false;
}

size_t product_work_size(const ggml_tensor *) {
    return 0;
}

void product(const ggml_compute_params *, ggml_tensor *) {}

}  // namespace slm

#endif
