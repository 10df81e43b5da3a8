// Included in llama.cpp's kernels by slm/native/recipe/build.cmake: weights are fetched ahead.

#pragma once

#include <cstddef>

// Asks for the cache lines of something that is needed later. Nothing is read: it may lie behind the last one.
template <typename T> static inline void slm_fetch(const T * later) {
    for (size_t at = 0; at < sizeof(T); at += 64) {
        __builtin_prefetch((const char *) later + at);
    }
}

// The same for the part of a block that belongs to 256 bytes of its quants.
template <typename T> static inline void slm_fetch_part(const T * later, size_t part) {
    const size_t bytes = sizeof(T) / (sizeof(later->qs) / 256);
    for (size_t at = bytes * part; at < bytes * (part + 1); at += 64) {
        __builtin_prefetch((const char *) later + at);
    }
}
