// A wall clock that is wrong: TEST_CLOCK_AHEAD is how many seconds it is ahead, TEST_CLOCK_SET whether a time server set it.
// Loaded before the C library (LD_PRELOAD); all other clocks are as they are.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timex.h>
#include <time.h>

static long number(const char *name) {
    const char *text = getenv(name);
    return text ? atol(text) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real)
        real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, time);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        time->tv_sec += number("TEST_CLOCK_AHEAD");
    return failed;
}

int adjtimex(struct timex *timex) {
    int set = number("TEST_CLOCK_SET");
    memset(timex, 0, sizeof *timex);
    timex->status = set ? STA_PLL : STA_UNSYNC;
    return set ? TIME_OK : TIME_ERROR;
}
