// Included in llama.cpp's kernels by scripts/llama/build.cmake: weights are fetched ahead.

#pragma once

#include <cstddef>

// Asks for the cache lines of some bytes that are needed later. Nothing is read: they may lie behind the last ones.
static inline void slm_fetch_bytes(const void * later, size_t from, size_t to) {
    for (size_t at = from; at < to; at += 64) {
        __builtin_prefetch((const char *) later + at);
    }
}

template <typename T> static inline void slm_fetch(const T * later) {
    slm_fetch_bytes(later, 0, sizeof(T));
}

// The part of a block that belongs to 256 bytes of its quants.
template <typename T> static inline void slm_fetch_part(const T * later, size_t part) {
    const size_t bytes = sizeof(T) / (sizeof(later->qs) / 256);
    slm_fetch_bytes(later, bytes * part, bytes * (part + 1));
}
