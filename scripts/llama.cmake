# Included by llama.cpp's own build right after its project() line (scripts/build_llama.py; docs/decisions.md 2 and 42).

# Only the library is needed here, so its common code (argument parsing, chat parsers, HTTP), tools and examples are left
# out. Saves most of the build.
set(LLAMA_BUILD_COMMON OFF)

# Weights are fetched ahead: its kernels for several rows read a few columns of weights at a time, and the processor's own
# prefetcher has to see a pattern first, so it comes too late for every such tile. One instruction a cache line asks for
# the next tile while this one is multiplied; no result changes by a bit.
option(SLM_FETCH_AHEAD "let llama.cpp's x86 kernels fetch their weights ahead" ON)
set(slm_kernels "${PROJECT_SOURCE_DIR}/ggml/src/ggml-cpu")

# Puts `text` before `anchor` wherever that stands in a file of the kernels, which has to be `times` times.
function(slm_insert file times anchor text)
  file(READ "${slm_kernels}/${file}" old)
  string(REPLACE "${anchor}" "${text}${anchor}" new "${old}")
  string(LENGTH "${old}" old_length)
  string(LENGTH "${new}" new_length)
  string(LENGTH "${text}" text_length)
  math(EXPR found "(${new_length} - ${old_length}) / ${text_length}")
  if(NOT found EQUAL times)
    message(FATAL_ERROR "scripts/llama.cmake does not know this llama.cpp: '${anchor}' is in ${file} ${found} times, not "
                        "${times}. Take the version of constraints.txt, or: make setup CMAKE_ARGS=-DSLM_FETCH_AHEAD=OFF")
  endif()
  file(WRITE "${slm_kernels}/${file}" "${new}")
endfunction()

set(slm_fetch [[
// Asks for the cache lines of something that is needed later. Nothing is read: it may lie behind the last one.
template <typename T> static inline void slm_fetch(const T * later) {
    for (size_t at = 0; at < sizeof(T); at += 64) {
        __builtin_prefetch((const char *) later + at);
    }
}

]])
set(slm_fetch_part [[
// The same for the part of a block that belongs to 256 bytes of its quants.
template <typename T> static inline void slm_fetch_part(const T * later, size_t part) {
    const size_t bytes = sizeof(T) / (sizeof(later->qs) / 256);
    for (size_t at = bytes * part; at < bytes * (part + 1); at += 64) {
        __builtin_prefetch((const char *) later + at);
    }
}

// `slm doctor` asks for this name.
extern "C" __attribute__((visibility("default"))) const int slm_fetches_ahead = 1;

]])

file(READ "${slm_kernels}/arch/x86/repack.cpp" slm_source)
string(FIND "${slm_source}" "slm_fetch" slm_done)
if(SLM_FETCH_AHEAD AND slm_done EQUAL -1 AND CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64" AND NOT MSVC)
  # Tiles of 16 columns (AVX-512) and of 8: 4-bit blocks of 32 (q4_0, iq4_nl, mxfp4), then q4_k and q2_k.
  slm_insert(arch/x86/repack.cpp 1 "#define UNUSED GGML_UNUSED" "${slm_fetch}${slm_fetch_part}")
  set(load "const __m256i rhs_raw_mat_0123_0 = _mm256_loadu_si256((const __m256i")
  slm_insert(arch/x86/repack.cpp 2 "${load} *)(b_ptr_0[b].qs));"
             "slm_fetch(b_ptr_0 + b + 2 * nb);\n                slm_fetch(b_ptr_1 + b + 2 * nb);\n                ")
  slm_insert(arch/x86/repack.cpp 2 "${load} *)(b_ptr[b].qs));" "slm_fetch(b_ptr + b + nb);\n                ")
  set(line "\n                    ")
  slm_insert(arch/x86/repack.cpp 4 "${load} * )(b_ptr_0[b].qs + sb * 256));"
             "slm_fetch_part(b_ptr_0 + b + 2 * nb, sb);${line}slm_fetch_part(b_ptr_1 + b + 2 * nb, sb);${line}")
  foreach(pointer "*" "* ")
    slm_insert(arch/x86/repack.cpp 2 "${load} ${pointer})(b_ptr[b].qs + sb * 256));" "slm_fetch_part(b_ptr + b + nb, sb);${line}")
  endforeach()
  # Tiles of 4 rows of weights, which follow one another, of blocks of 32 (q8_0, q5_0, ...); of f16 and f32 (keys, values,
  # adapters) two tiles ahead.
  slm_insert(llamafile/sgemm.cpp 1 "// FLOATING POINT MATRIX MULTIPLICATION" "${slm_fetch}")
  slm_insert(llamafile/sgemm.cpp 1 "uint64_t a_delta = ((uint64_t)A[lda * (ii + 3) + l].d << 48)"
             "slm_fetch((const TA (*)[4]) (A + lda * (ii + 4)) + l);\n                ")
  slm_insert(llamafile/sgemm.cpp 1 "// help compiler for op order."
             "for (int64_t i = 2 * RM; i < 3 * RM; ++i) {
                slm_fetch(A + lda * (ii + i) + l);
            }
            ")
endif()
