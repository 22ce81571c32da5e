/* A library for LD_PRELOAD that lets the Nth call to the file system fail, for files under one folder.

   cc -shared -fPIC -O1 -o failing_calls.so failing_calls.c -ldl

   fail_from(n, error, ever, reads, prefix) sets it: n counts the calls from 0, -1 lets none fail; `ever`: all later ones
   fail, too; `reads`: calls that read count as well. calls_seen() says how many were counted since. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static long wanted = -1, seen = 0;
static int failure = EIO, for_ever = 0, with_reads = 0;
static char under[4096] = "";

void fail_from(long n, int error, int ever, int reads, const char *prefix) {
    wanted = n, failure = error, for_ever = ever, with_reads = reads;
    snprintf(under, sizeof under, "%s", prefix);
    __atomic_store_n(&seen, 0, __ATOMIC_SEQ_CST);
}

long calls_seen(void) { return __atomic_load_n(&seen, __ATOMIC_SEQ_CST); }

static int counted(void) {
    long number = __atomic_fetch_add(&seen, 1, __ATOMIC_SEQ_CST);
    if (wanted < 0 || number < wanted || (number > wanted && !for_ever)) return 0;
    errno = failure;
    return 1;
}

static int fails_path(const char *path) {
    return under[0] && path && strncmp(path, under, strlen(under)) == 0 && counted();
}

static int fails(int fd) {
    if (!under[0]) return 0;
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int kept = errno;
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = kept;
    if (length < 0) return 0;
    path[length] = 0;
    return fails_path(path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define ON_FD(type, name, parameters, arguments, condition) \
    type name parameters { \
        static __typeof__(&name) real; \
        if (!real) real = REAL(name); \
        return (condition) && fails(fd) ? -1 : real arguments; \
    }

ON_FD(ssize_t, write, (int fd, const void *data, size_t n), (fd, data, n), 1)
ON_FD(ssize_t, pwrite, (int fd, const void *data, size_t n, off_t at), (fd, data, n, at), 1)
ON_FD(ssize_t, pwrite64, (int fd, const void *data, size_t n, off64_t at), (fd, data, n, at), 1)
ON_FD(ssize_t, writev, (int fd, const struct iovec *parts, int n), (fd, parts, n), 1)
ON_FD(int, fsync, (int fd), (fd), 1)
ON_FD(int, fdatasync, (int fd), (fd), 1)
ON_FD(int, ftruncate, (int fd, off_t n), (fd, n), 1)
ON_FD(int, ftruncate64, (int fd, off64_t n), (fd, n), 1)
ON_FD(ssize_t, read, (int fd, void *data, size_t n), (fd, data, n), with_reads)
ON_FD(ssize_t, pread, (int fd, void *data, size_t n, off_t at), (fd, data, n, at), with_reads)
ON_FD(ssize_t, pread64, (int fd, void *data, size_t n, off64_t at), (fd, data, n, at), with_reads)

int rename(const char *from, const char *to) {
    static __typeof__(&rename) real;
    if (!real) real = REAL(rename);
    return fails_path(to) ? -1 : real(from, to);
}

#define OPENING(name) \
    int name(const char *path, int flags, ...) { \
        static int (*real)(const char *, int, ...); \
        if (!real) real = dlsym(RTLD_NEXT, #name); \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; \
        va_end(more); \
        return ((flags & O_CREAT) || with_reads) && fails_path(path) ? -1 : real(path, flags, mode); \
    }
OPENING(open)
OPENING(open64)
