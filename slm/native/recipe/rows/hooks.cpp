// Which nodes are computed here, and the switch that leaves all of them to llama.cpp.

#include "hooks.h"

#include "amx.h"
#include "attention.h"
#include "gelu.h"
#include "ggml-cpu-impl.h"
#include "products.h"
#include "rotation.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace {

enum { PRODUCTS = 1, ATTENTION = 2, ROTATION = 4, GELU = 8, TILES = 16, FEW = 32 };

int chosen() {
    int used = 0;
    if (slm_kernel_wanted("products") && slm::has_products()) {
        used |= PRODUCTS;
        used |= (slm::uses_tiles() ? TILES : 0) | (slm::uses_few() ? FEW : 0);
    }
    if (slm_kernel_wanted("attention") && slm::has_attention()) {
        used |= ATTENTION;
    }
    if (slm_kernel_wanted("rotation")) {
        used |= ROTATION;
    }
    if (slm_kernel_wanted("gelu") && slm::has_gelu()) {
        used |= GELU;
    }
    return used;
}

const int used = chosen();

bool is_product(const ggml_tensor * node) {
    return (used & PRODUCTS) && node->op == GGML_OP_MUL_MAT && slm::knows_product(node);
}

bool is_attention(const ggml_tensor * node) {
    return (used & ATTENTION) && node->op == GGML_OP_FLASH_ATTN_EXT && slm::knows_attention(node);
}

}  // namespace

extern "C" bool slm_kernel_wanted(const char * name) {
    const char * wanted = std::getenv("SLM_LLAMA_KERNELS");
    return !wanted || !*wanted || std::strstr(wanted, name);
}

extern "C" int slm_kernels_used(void) {
    return used;
}

extern "C" bool slm_compute_forward(const ggml_compute_params * params, ggml_tensor * node) {
    if (params->use_ref) {
        return false;
    }
    if (is_product(node)) {
        slm::product(params, node);
        return true;
    }
    if (is_attention(node)) {
        slm::attention(params, node);
        return true;
    }
    if ((used & ROTATION) && node->op == GGML_OP_ROPE && slm::knows_rotation(node)) {
        slm::rotation(params, node);
        return true;
    }
    if ((used & GELU) && (node->op == GGML_OP_UNARY || node->op == GGML_OP_GLU) && slm::knows_gelu(node)) {
        slm::gelu(params, node);
        return true;
    }
    return false;
}

extern "C" size_t slm_work_size(const ggml_tensor * node, int threads, size_t wanted) {
    if (is_product(node)) {
        return std::max(wanted, slm::product_work_size(node));
    }
    if (is_attention(node)) {
        return std::max(wanted, slm::attention_work_size(node, threads));
    }
    return wanted;
}
