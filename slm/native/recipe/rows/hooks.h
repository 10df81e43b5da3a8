// What llama.cpp's CPU backend asks before it computes a node itself (slm/native/recipe/build.cmake puts the calls in).

#pragma once

#include <stdbool.h>
#include <stddef.h>

struct ggml_compute_params;
struct ggml_tensor;

#ifdef __cplusplus
extern "C" {
#endif

// Computes a node, if there is a kernel of ours for it and it is worth it. All threads of a graph get the same answer.
bool slm_compute_forward(const struct ggml_compute_params * params, struct ggml_tensor * node);

// The bytes of shared memory that a node needs: `wanted`, what llama.cpp's own way takes, or more.
size_t slm_work_size(const struct ggml_tensor * node, int threads, size_t wanted);

// Whether a kernel is to be used. SLM_LLAMA_KERNELS names those that are: "products", "few" (those of few rows), "tiles"
// (those of very many by AMX), "attention", "rotation", "gelu", with commas, or "none". Unset: all there are.
bool slm_kernel_wanted(const char * name);

// Which kernels are used by this process: 1 products, 2 attention, 4 rotation, 8 GELU, 16 products by AMX, 32 of few rows.
// Asked by slm/native/llama.py.
__attribute__((visibility("default"))) int slm_kernels_used(void);

#ifdef __cplusplus
}
#endif
