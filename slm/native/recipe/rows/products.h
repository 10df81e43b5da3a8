// Matrix products for rows of activations (products.cpp).

#pragma once

#include "ggml-cpu-impl.h"

namespace slm {

// Whether this processor's instructions are enough.
bool has_products();

// Whether few rows are multiplied here, with weights as they lie: the processor has the instructions, and SLM_LLAMA_KERNELS
// does not leave them out.
bool uses_few();

// Whether there is a kernel for this product, and rows enough, or few enough.
bool knows_product(const ggml_tensor * node);

// The bytes of shared memory that such a product needs.
size_t product_work_size(const ggml_tensor * node);

// Computes such a product.
void product(const ggml_compute_params * params, ggml_tensor * node);

}  // namespace slm
