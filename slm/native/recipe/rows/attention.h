// Attention of rows of queries over the cells of a KV cache (attention.cpp).

#pragma once

#include "ggml-cpu-impl.h"

namespace slm {

// Whether this processor's instructions are enough. It is then as fast as llama.cpp's plain way for one row, and faster for more.
bool has_attention();

// Whether this node of kind GGML_OP_FLASH_ATTN_EXT can be computed here.
bool knows_attention(const ggml_tensor * node);

// The bytes of shared memory that it needs on so many threads, or on fewer.
size_t attention_work_size(const ggml_tensor * node, int threads);

// Computes it.
void attention(const ggml_compute_params * params, ggml_tensor * node);

}  // namespace slm
