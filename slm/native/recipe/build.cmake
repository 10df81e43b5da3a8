# Included by llama.cpp's own build right after its project() line (slm/native/build.py; decisions 2 and 42 in docs/decisions.md).

# Only the library is needed here, so its common code (argument parsing, chat parsers, HTTP), tools and examples are left
# out. Saves most of the build.
set(LLAMA_BUILD_COMMON OFF)

# Where the processor has AMX, llama.cpp loads weights into buffers for it, and the first product ends the process: the
# compiler drops the stores that describe the tiles, so every tile instruction is illegal (llama.cpp's pull request 26954).
# Without it the products are ours, with VNNI, and with tiles of our own (rows/wide.h).
include(CheckCXXCompilerFlag)
foreach(slm_amx tile int8 bf16)
  check_cxx_compiler_flag(-mno-amx-${slm_amx} SLM_CAN_LEAVE_OUT_AMX_${slm_amx})
  if(SLM_CAN_LEAVE_OUT_AMX_${slm_amx} AND CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    add_compile_options(-mno-amx-${slm_amx})
  endif()
endforeach()

option(SLM_KERNELS "let llama.cpp's x86 kernels fetch weights ahead, multiply q4_0 without moving signs, and hand many rows to ours" ON)
set(slm_kernels "${PROJECT_SOURCE_DIR}/ggml/src/ggml-cpu")
set(slm_here "${CMAKE_CURRENT_LIST_DIR}")

function(slm_expect file times found what)
  if(NOT found EQUAL times)
    message(FATAL_ERROR "slm/native/recipe/build.cmake does not know this llama.cpp: '${what}' is in ${file} ${found} times, "
                        "not ${times}. Take the version that pyproject.toml names, or build without these kernels: set "
                        "CMAKE_ARGS=-DSLM_KERNELS=OFF")
  endif()
endfunction()

# Puts `text` before `anchor` wherever that stands in a file of the kernels, which has to be `times` times.
function(slm_insert file times anchor text)
  file(READ "${slm_kernels}/${file}" old)
  string(REPLACE "${anchor}" "${text}${anchor}" new "${old}")
  string(LENGTH "${old}" old_length)
  string(LENGTH "${new}" new_length)
  string(LENGTH "${text}" text_length)
  math(EXPR found "(${new_length} - ${old_length}) / ${text_length}")
  slm_expect(${file} ${times} ${found} "${anchor}")
  file(WRITE "${slm_kernels}/${file}" "${new}")
endfunction()

# Puts `text` in the place of whatever matches a pattern, which has to be `times` times.
function(slm_replace file times pattern text)
  file(READ "${slm_kernels}/${file}" old)
  string(REGEX MATCHALL "${pattern}" matches "${old}")
  list(LENGTH matches found)
  slm_expect(${file} ${times} ${found} "${pattern}")
  string(REGEX REPLACE "${pattern}" "${text}" new "${old}")
  file(WRITE "${slm_kernels}/${file}" "${new}")
endfunction()

file(READ "${slm_kernels}/arch/x86/repack.cpp" slm_source)
string(FIND "${slm_source}" "slm_fetch" slm_done)
if(SLM_KERNELS AND slm_done EQUAL -1 AND CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64" AND NOT MSVC)
  # The kernels for several rows read a few columns of weights at a time, and the processor's own prefetcher has to see a
  # pattern first, so it comes too late for every such tile. They ask for the next one while they multiply this one.
  # Tiles of 16 columns (AVX-512) and of 8: 4-bit blocks of 32 (q4_0, iq4_nl, mxfp4), then q4_k and q2_k.
  set(file arch/x86/repack.cpp)
  slm_insert(${file} 1 "#define UNUSED GGML_UNUSED" "#include \"${slm_here}/fetch.h\"\n\n")
  set(load "const __m256i rhs_raw_mat_0123_0 = _mm256_loadu_si256((const __m256i")
  set(line "\n                ")
  slm_insert(${file} 2 "${load} *)(b_ptr_0[b].qs));"
             "slm_fetch(b_ptr_0 + b + 2 * nb);${line}slm_fetch(b_ptr_1 + b + 2 * nb);${line}")
  slm_insert(${file} 2 "${load} *)(b_ptr[b].qs));" "slm_fetch(b_ptr + b + nb);${line}")
  set(line "\n                    ")
  slm_insert(${file} 4 "${load} * )(b_ptr_0[b].qs + sb * 256));"
             "slm_fetch_part(b_ptr_0 + b + 2 * nb, sb);${line}slm_fetch_part(b_ptr_1 + b + 2 * nb, sb);${line}")
  foreach(pointer "*" "* ")
    slm_insert(${file} 2 "${load} ${pointer})(b_ptr[b].qs + sb * 256));" "slm_fetch_part(b_ptr + b + nb, sb);${line}")
  endforeach()

  # Products of four pairs of vectors in the kernels for 4-bit blocks of 32; of q4_0 the weights come with 8 added.
  slm_insert(${file} 1 "template<typename block_tx8>\nstatic void gemv_q4_b32_8x8_q8_0_lut_avx" "#include \"${slm_here}/dot.h\"\n\n")
  set(one "mul_sum_i8_pairs_acc_int32x[0-9]+\\(")
  set(pair "([a-zA-Z0-9_]+), ([a-zA-Z0-9_]+)\\)")
  slm_replace(${file} 32 "${one}${one}${one}${one}zero, ${pair}, ${pair}, ${pair}, ${pair}"
              "slm_dot<block_tx8>(\\1, \\2, \\3, \\4, \\5, \\6, \\7, \\8)")
  slm_insert(${file} 1 "gemm_q4_b32_8x8_q8_0_lut_avx<block_q4_0x8>(n, s, bs"
             "signextendlut = _mm256_add_epi8(signextendlut, _mm256_set1_epi8(8));\n        ")

  # Tiles of 4 rows of weights, which follow one another, of blocks of 32 (q8_0, q5_0, ...); of f16 and f32 (keys, values,
  # adapters) two tiles ahead.
  set(file llamafile/sgemm.cpp)
  slm_insert(${file} 1 "// FLOATING POINT MATRIX MULTIPLICATION" "#include \"${slm_here}/fetch.h\"\n\n")
  slm_insert(${file} 1 "uint64_t a_delta = ((uint64_t)A[lda * (ii + 3) + l].d << 48)"
             "slm_fetch((const TA (*)[4]) (A + lda * (ii + 4)) + l);\n                ")
  slm_insert(${file} 1 "// help compiler for op order."
             "for (int64_t i = 2 * RM; i < 3 * RM; ++i) {
                slm_fetch(A + lda * (ii + i) + l);
            }
            ")

  # Products and attention of rows are ours: llama.cpp asks them before it computes a node, and how much memory
  # they need when it plans a graph (rows/hooks.h).
  set(slm_sources "")
  foreach(source hooks products amx attention rotation gelu)
    string(APPEND slm_sources "${slm_here}/rows/${source}.cpp\n        ")
  endforeach()
  slm_insert(CMakeLists.txt 1 "ggml-cpu/tiled/tiled.cpp" "${slm_sources}")
  set(file ggml-cpu.c)
  slm_insert(${file} 1 "#include \"tiled/tiled.h\"" "#include \"${slm_here}/rows/hooks.h\"\n")
  slm_insert(${file} 1 "// extra_buffer op?" "if (slm_compute_forward(params, tensor)) {\n        return;\n    }\n\n    ")
  slm_insert(${file} 1 "work_size = MAX(work_size, cur);" "cur = slm_work_size(node, n_threads, cur);\n        ")
endif()
