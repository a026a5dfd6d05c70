/* The wall clock as SUBQUAD_CLOCK says it goes; the monotonic clock goes as it does. For LD_PRELOAD. */

#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static struct timespec told(clockid_t clock) {
    struct timespec now, since;
    const char *way = getenv("SUBQUAD_CLOCK");
    syscall(SYS_clock_gettime, clock, &now);
    if ((clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE) || !way)
        return now;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &since);
    if (!strcmp(way, "still"))
        now.tv_sec = 1700000000, now.tv_nsec = 0;
    else if (!strcmp(way, "backward"))
        now.tv_sec = 1700000000 - since.tv_sec, now.tv_nsec = 999999999 - since.tv_nsec;
    else if (!strcmp(way, "jumping")) /* a month ahead and back again, each second */
        now.tv_sec += since.tv_sec % 2 ? 2592000 : 0;
    return now;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    *time = told(clock);
    return 0;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    struct timespec now = told(CLOCK_REALTIME);
    time->tv_sec = now.tv_sec, time->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *seconds) {
    struct timespec now = told(CLOCK_REALTIME);
    if (seconds) *seconds = now.tv_sec;
    return now.tv_sec;
}
