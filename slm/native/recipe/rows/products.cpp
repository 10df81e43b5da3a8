// Products of quantized weights and many rows of activations.
//
// Activations are quantized once, in parts of 32 or 256 with a scale for each (activations.h).
// A thread takes a strip of weights, two vectors of rows, lays it out as bytes so that one load has four bytes of each row of
// a vector (strip.h), and multiplies it with all activations, a few rows at a time, sums held in registers (bytes.h). The
// strip stays in the second-level cache meanwhile. Laying it out takes about a fiftieth of the time at 512 rows.
// Where the processor has AMX, many rows are multiplied in another way (wide.h); few rows where it has VNNI (few.h).

#include "products.h"

#include "hooks.h"
#include "lanes.h"

#ifdef SLM_LANES

#include "activations.h"
#include "few.h"
#include "ggml-backend-impl.h"
#include "repack.h"
#include "strip.h"
#include "weights.h"
#include "wide.h"

#include <algorithm>

namespace slm {

constexpr int64_t LEAST_PART = 32;  // rows that a strip is laid out for by one thread, where more threads share them

// Weights that are needed next: `step` bytes for each group of those in hand.
struct Ahead {
    const char * from;
    size_t step;
};

// What all rows of activations have in common for a strip. Sums go to rows `stride` floats apart, as many of them as the
// strip has columns.
struct Task {
    const Strip & strip;
    const Layout & layout;
    int64_t width;
    size_t stride;
    int first, second;  // columns of each vector
    Ahead ahead;
};

// The sums of N rows of activations with one strip. Not inlined: its registers are its own. What it is given lies still: what
// is copied for every call waits until all stores before it are done, the sums of the rows before among them.
template <typename Type, int N>
__attribute__((noinline)) static void multiply(const Task & task, const char * rows, float * to, bool fetches) {
    const Strip & strip = task.strip;
    const Layout layout = task.layout;
    const Ahead ahead = {task.ahead.from, fetches ? task.ahead.step : 0};
    constexpr int FOURS = Type::GROUP / 4;
    lanes sums[N][2];
    for (int row = 0; row < N; row++) {
        sums[row][0] = sums[row][1] = all(0.0f);
    }
    const uint8_t * bytes = strip.bytes;
    for (int64_t group = 0; group < task.width / Type::GROUP; group++) {
        for (size_t at = 0; at < ahead.step; at += 64) {
            _mm_prefetch(ahead.from + group * ahead.step + at, _MM_HINT_T1);
        }
        ints products[N][2];
        for (int run = 0; run < FOURS; run += Sums<Type>::RUN) {
            ints parts[N][2];
            for (int row = 0; row < N; row++) {
                int32_t begin = 0;
                if (!Type::MINIMUM && zero_of<Type> && run == 0) {
                    begin = ((const int32_t *) (rows + row * layout.stride + layout.sums))[group];
                }
                parts[row][0] = parts[row][1] = Sums<Type>::begin(begin);
            }
#pragma GCC unroll 8
            for (int four = run; four < run + Sums<Type>::RUN; four++) {
                const ints a = load_ints(bytes), b = load_ints(bytes + 4 * SLM_LANES);
                bytes += 4 * STRIP;
                for (int row = 0; row < N; row++) {
                    int32_t values;
                    if (four == 0) {  // the next rows are far apart: the processor does not see them coming
                        _mm_prefetch(rows + (N + row) * layout.stride + group * Type::GROUP, _MM_HINT_T0);
                    }
                    memcpy(&values, rows + row * layout.stride + group * Type::GROUP + 4 * four, 4);
                    const ints x = all_ints(values);
                    Sums<Type>::add(parts[row][0], a, x);
                    Sums<Type>::add(parts[row][1], b, x);
                }
            }
            for (int row = 0; row < N; row++) {
                for (int v = 0; v < 2; v++) {
                    const ints part = Sums<Type>::end(parts[row][v]);
                    products[row][v] = run ? add_ints(products[row][v], part) : part;
                }
            }
        }
        const lanes a = load(strip.scales + group * STRIP), b = load(strip.scales + group * STRIP + SLM_LANES);
        for (int row = 0; row < N; row++) {
            const float * scales = (const float *) (rows + row * layout.stride + layout.scales);
            const lanes x = all(scales[group * Type::GROUP / 32]);
            sums[row][0] = multiply_add(to_floats(products[row][0]), multiply(a, x), sums[row][0]);
            sums[row][1] = multiply_add(to_floats(products[row][1]), multiply(b, x), sums[row][1]);
        }
        if constexpr (Type::MINIMUM) {
            const lanes c = load(strip.minima + group * STRIP), d = load(strip.minima + group * STRIP + SLM_LANES);
            for (int row = 0; row < N; row++) {
                const lanes x = all(-((const float *) (rows + row * layout.stride + layout.sums))[group]);
                sums[row][0] = multiply_add(c, x, sums[row][0]);
                sums[row][1] = multiply_add(d, x, sums[row][1]);
            }
        }
    }
    for (int row = 0; row < N; row++) {
        store_first(to + row * task.stride, sums[row][0], task.first);
        store_first(to + row * task.stride + SLM_LANES, sums[row][1], task.second);
    }
}

// How many parts the rows of activations fall into, so that there are enough pieces of work for all threads.
static int64_t row_parts(int64_t strips, int64_t rows, int threads) {
    const int64_t wanted = threads == 1 ? 1 : (4 * threads + strips - 1) / strips;
    return std::max<int64_t>(1, std::min(wanted, rows / LEAST_PART));
}

// All rows of activations with one strip, a few at a time.
template <typename Type>
static void multiply_all(const Task & task, const char * rows, float * to, int64_t count) {
    for (int64_t row = 0, some; row < count; row += some) {
        const int64_t left = count - row, groups = (left + PRODUCT_ROWS - 1) / PRODUCT_ROWS;
        some = (left + groups - 1) / groups;  // 8 rows are 4 and 4, not 6 and 2
        const char * from = rows + row * task.layout.stride;
        float * sums = to + row * task.stride;
#define SLM_ROWS(N) case N: multiply<Type, std::min(N, PRODUCT_ROWS)>(task, from, sums, row == 0); break
        switch (some) {
            SLM_ROWS(1);
            SLM_ROWS(2);
            SLM_ROWS(3);
            SLM_ROWS(4);
            SLM_ROWS(5);
            SLM_ROWS(6);
        }
#undef SLM_ROWS
    }
}

template <typename Type> static void product_of(const ggml_compute_params * params, ggml_tensor * node) {
    const ggml_tensor * weights = node->src[0];
    const ggml_tensor * activations = node->src[1];
    const int64_t width = weights->ne[0], columns = weights->ne[1], rows = activations->ne[1];
#ifdef SLM_AMX
    if (is_wide(node)) {
        return wide_product_of<Type>(params, node);
    }
#endif
    const Layout layout(width, Type::GROUP);
    char * quantized = (char *) GGML_PAD((uintptr_t) params->wdata, 64);
    for (int64_t row = params->ith; row < rows; row += params->nth) {
        quantize_row<Type>(row_of(activations, row), quantized + row * layout.stride, width, layout);
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
        // The strip that is likely the next of this thread: the memory is read while this one is multiplied.
        const int64_t later = first + params->nth * STRIP;
        Ahead ahead{nullptr, 0};
        if (parts == 1 && later + STRIP <= columns) {
            ahead = {(const char *) weights->data + later * weights->nb[1], STRIP * weights->nb[1] / (width / Type::GROUP)};
        }
        const size_t stride = node->nb[1] / sizeof(float);
        const int columns_of_first = std::min<int>(left, SLM_LANES), others = std::max<int>(left - SLM_LANES, 0);
        const Task task{strip, layout, width, stride, columns_of_first, others, ahead};
        float * to = (float *) node->data + begin * stride + first;
        multiply_all<Type>(task, quantized + begin * layout.stride, to, end - begin);
    }
}

// A kernel for weights of a type, and from how many rows on it pays to lay them out; and one for a few rows, and up to how
// many it is the fastest (few.h). Where there is none of these, fewer rows go llama.cpp's way.
struct Kernel {
    void (*compute)(const ggml_compute_params *, ggml_tensor *) = nullptr;
    int64_t least = 0;
    void (*few)(const ggml_compute_params *, ggml_tensor *) = nullptr;
    int64_t most_few = 0;
};

// As measured with 16 lanes and VNNI, and with eight without it (decision 83).
template <typename Type> static constexpr Kernel kernel(int with_sixteen, int with_eight) {
    return {product_of<Type>, SLM_LANES == 16 ? with_sixteen : with_eight};
}

// With one for a few rows beside it, which is the fastest up to so many.
static Kernel with_few(Kernel kernel, void (*few)(const ggml_compute_params *, ggml_tensor *), int64_t most) {
    kernel.few = few;
    kernel.most_few = uses_few() ? most : 0;
    return kernel;
}

static bool is_few(const ggml_tensor * node, const Kernel & kernel) {
    return node->src[1]->ne[1] <= kernel.most_few && node->src[0]->ne[0] % 64 == 0;
}

static bool lies_in_eights(const ggml_tensor * weights) {
    return weights->buffer && weights->buffer->buft == ggml_backend_cpu_repack_buffer_type();
}

// The kernel for weights as they lie, or none.
static Kernel kernel_for(const ggml_tensor * weights) {
    if (lies_in_eights(weights)) {
        if (weights->ne[1] % 8) {
            return {};
        }
        switch (weights->type) {
            case GGML_TYPE_Q4_0: return with_few(kernel<Q4_0x8>(8, 8), few_of_eights<Q4_0x8, block_q4_0x8>, 24);
            case GGML_TYPE_Q4_K: return with_few(kernel<Q4_Kx8>(8, 8), few_of_eights<Q4_Kx8, block_q4_Kx8>, 24);
            default: return {};
        }
    }
    if (weights->buffer && !ggml_backend_buft_is_host(weights->buffer->buft)) {
        return {};
    }
    switch (weights->type) {
        case GGML_TYPE_Q4_0: return with_few(kernel<Q4_0>(6, 3), few_of<Q4_0, block_q4_0>, 5);
        case GGML_TYPE_Q4_1: return kernel<Q4_1>(6, 3);
        case GGML_TYPE_Q5_0: return with_few(kernel<Q5_0>(6, 3), few_of<Q5_0, block_q5_0>, 5);
        case GGML_TYPE_Q5_1: return kernel<Q5_1>(6, 3);
        case GGML_TYPE_Q8_0: return with_few(kernel<Q8_0>(6, 8), few_of<Q8_0, block_q8_0>, 5);
        case GGML_TYPE_Q4_K: return kernel<Q4_K>(6, 5);
        case GGML_TYPE_Q5_K: return kernel<Q5_K>(6, 4);
        case GGML_TYPE_Q6_K: return with_few(kernel<Q6_K>(6, 4), few_of<Q6_K, block_q6_K>, 5);
        default: return {};
    }
}

bool has_products() {
    return true;
}

bool uses_few() {
    static const bool used = HAS_FEW && slm_kernel_wanted("few");
    return used;
}

bool knows_product(const ggml_tensor * node) {
    const ggml_tensor * weights = node->src[0];
    const ggml_tensor * activations = node->src[1];
    const Kernel kernel = kernel_for(weights);
    return kernel.compute && (activations->ne[1] >= kernel.least || is_few(node, kernel)) && activations->type == GGML_TYPE_F32 &&
           node->type == GGML_TYPE_F32 && activations->ne[2] == 1 && activations->ne[3] == 1 && weights->ne[2] == 1 &&
           weights->ne[3] == 1 && ggml_get_op_params_i32(node, 1) == 0 && activations->nb[0] == sizeof(float) &&
           node->nb[0] == sizeof(float) && weights->nb[1] == ggml_row_size(weights->type, weights->ne[0]) &&
           weights->ne[0] % 32 == 0;
}

size_t product_work_size(const ggml_tensor * node) {
#ifdef SLM_AMX
    if (is_wide(node)) {
        return wide_work_size(node);
    }
#endif
    return node->src[1]->ne[1] * Layout(node->src[0]->ne[0], 16).stride + 64;
}

void product(const ggml_compute_params * params, ggml_tensor * node) {
    const Kernel kernel = kernel_for(node->src[0]);
    (is_few(node, kernel) ? kernel.few : kernel.compute)(params, node);
}

}  // namespace slm

#else

namespace slm {

bool has_products() {
    return false;
}

bool uses_few() {
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
