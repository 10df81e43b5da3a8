// The tiles of AMX: eight registers of 16 rows by 64 bytes, and the instruction that multiplies two of them as bfloat16.
//
// llama.cpp is built without AMX (build.cmake), and compilers' own functions for it tell nothing of the memory that they
// read, so that stores before them are dropped (GCC 12). These say it. No flag of the compiler for AMX is needed: what
// the processor and the system allow is asked while the program runs.

#pragma once

#include "bytes.h"

#include <cstdint>

namespace slm {

// Whether products are computed with tiles: the processor has those of bfloat16, the system lets this process use
// them, and SLM_LLAMA_KERNELS does not leave them out.
bool uses_tiles();

#if defined(SLM_VNNI) && SLM_LANES == 16 && defined(__AVX512BF16__) && defined(__x86_64__) && defined(__linux__)
#define SLM_AMX

// All eight tiles in full: 16 rows of 64 bytes (Intel's manual, volume 1, 18.3).
struct alignas(64) TileShapes {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// A thread sets the shapes before it uses tiles and gives them back, or every switch of threads would save 8 KB.
struct Tiles {
    Tiles() {
        const TileShapes shapes;
        asm volatile("ldtilecfg %0" : : "m"(shapes) : "memory");
    }
    ~Tiles() { asm volatile("tilerelease" : : : "memory"); }
    Tiles(const Tiles &) = delete;
    Tiles & operator=(const Tiles &) = delete;
};

// Rows of a tile lie `stride` bytes apart.
template <int Tile> static inline void load_tile(const void * from, size_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(Tile) : "memory");
}

template <int Tile> static inline void store_tile(void * to, size_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(Tile) : "memory");
}

template <int Tile> static inline void clear_tile() {
    asm volatile("tilezero %%tmm%c0" : : "i"(Tile));
}

// Sum[m][n] += A[m][2k + i] * B[k][2n + i], numbers of bfloat16, summed in single precision.
template <int Sum, int A, int B> static inline void add_bfloats() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sum), "i"(A), "i"(B));
}
#endif

}  // namespace slm
