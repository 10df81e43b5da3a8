// The GELU of feed-forward layers, alone or as a gate (gelu.cpp).

#pragma once

#include "ggml-cpu-impl.h"

namespace slm {

bool has_gelu();

// Whether this node of kind GGML_OP_UNARY or GGML_OP_GLU is one that can be computed here.
bool knows_gelu(const ggml_tensor * node);

// Computes it.
void gelu(const ggml_compute_params * params, ggml_tensor * node);

}  // namespace slm
