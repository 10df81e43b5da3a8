// Rotary positions (rotation.cpp).

#pragma once

#include "ggml-cpu-impl.h"

namespace slm {

// Whether this node of kind GGML_OP_ROPE can be computed here.
bool knows_rotation(const ggml_tensor * node);

// Computes it.
void rotation(const ggml_compute_params * params, ggml_tensor * node);

}  // namespace slm
