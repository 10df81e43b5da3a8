# Included by llama.cpp's own build right after its project() line: only the library is needed here, so its
# common code (argument parsing, chat parsers, HTTP), tools and examples are left out. Saves most of the build.
set(LLAMA_BUILD_COMMON OFF)
