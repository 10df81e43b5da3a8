// Whether tiles may be used, asked of the processor and of the system.

#include "amx.h"

#include "hooks.h"

#ifdef SLM_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace slm {

// Intel's manual, volume 2, CPUID: leaf 7, EDX, tiles and tiles of bfloat16. Volume 1, 13.3: the system saves their state.
static bool processor_has_tiles() {
    constexpr unsigned BFLOATS = 1u << 22, TILE = 1u << 24, SAVED = 3u << 17, XGETBV = 1u << 27;
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & XGETBV) || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
        return false;
    }
    if (!(d & TILE) || !(d & BFLOATS)) {
        return false;
    }
    unsigned low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & SAVED) == SAVED;
}

// Linux gives tiles to processes that ask for them (Documentation/arch/x86/xstate.rst).
static bool system_allows_tiles() {
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}

bool uses_tiles() {
    static const bool used = slm_kernel_wanted("tiles") && processor_has_tiles() && system_allows_tiles();
    return used;
}

}  // namespace slm

#else

namespace slm {

bool uses_tiles() {
    return false;
}

}  // namespace slm

#endif
