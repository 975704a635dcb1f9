// Writes down what a process has done to files below POWER_ROOT, in the order in which it was done, into POWER_TRACE.
// Loaded before the C library (LD_PRELOAD). One lock around each call and its record: the order is that of the kernel.
//
// A record is an operation (one byte), an offset or a length (8 bytes), the lengths of two byte strings (4 bytes each, all
// little-endian on the machines that this runs on), and the strings: the path, and what was written or the new path.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int inside(const char *path) {
    const char *root = getenv("POWER_ROOT");
    return root && strncmp(path, root, strlen(root)) == 0;
}

static int path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, 4095);
    path[length > 0 ? length : 0] = 0;
    return length > 0 && inside(path);
}

static void put(int trace, const void *bytes, size_t length) {
    for (const char *at = bytes; length;) {
        ssize_t done = REAL(write)(trace, at, length);
        if (done <= 0)
            abort();
        at += done, length -= done;
    }
}

static void record(char what, const char *path, uint64_t at, const void *data, size_t length) {
    static int trace = -1;
    if (trace < 0)
        trace = REAL(open)(getenv("POWER_TRACE"), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    uint32_t lengths[2] = {strlen(path), length};
    put(trace, &what, 1);
    put(trace, &at, 8);
    put(trace, lengths, 8);
    put(trace, path, lengths[0]);
    put(trace, data, length);
}

static int opened(int (*real)(const char *, int, ...), const char *path, int flags, mode_t mode) {
    if (!inside(path))
        return real(path, flags, mode);
    pthread_mutex_lock(&lock);
    int there = access(path, F_OK) == 0;
    int fd = real(path, flags, mode);
    if (fd >= 0 && !there)
        record('c', path, 0, "", 0);
    else if (fd >= 0 && flags & O_TRUNC)
        record('t', path, 0, "", 0);
    pthread_mutex_unlock(&lock);
    return fd;
}

#define OPEN(name)                                                                                                           \
    int name(const char *path, int flags, ...) {                                                                             \
        va_list rest;                                                                                                        \
        va_start(rest, flags);                                                                                               \
        mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;                                                            \
        va_end(rest);                                                                                                        \
        return opened(REAL(name), path, flags, mode);                                                                        \
    }
OPEN(open)
OPEN(open64)

ssize_t write(int fd, const void *data, size_t length) {
    char path[4096];
    if (!path_of(fd, path))
        return REAL(write)(fd, data, length);
    pthread_mutex_lock(&lock);
    struct stat about;
    off_t at = fcntl(fd, F_GETFL) & O_APPEND && fstat(fd, &about) == 0 ? about.st_size : lseek(fd, 0, SEEK_CUR);
    ssize_t done = REAL(write)(fd, data, length);
    if (done > 0)
        record('w', path, at, data, done);
    pthread_mutex_unlock(&lock);
    return done;
}

static ssize_t written_at(ssize_t (*real)(int, const void *, size_t, off_t), int fd, const void *data, size_t length, off_t at) {
    char path[4096];
    if (!path_of(fd, path))
        return real(fd, data, length, at);
    pthread_mutex_lock(&lock);
    ssize_t done = real(fd, data, length, at);
    if (done > 0)
        record('w', path, at, data, done);
    pthread_mutex_unlock(&lock);
    return done;
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t at) { return written_at(REAL(pwrite), fd, data, length, at); }
ssize_t pwrite64(int fd, const void *data, size_t length, off_t at) { return written_at(REAL(pwrite64), fd, data, length, at); }

// One that this does not understand must not go by unseen.
ssize_t writev(int fd, const struct iovec *data, int count) {
    char path[4096];
    if (path_of(fd, path))
        abort();
    return REAL(writev)(fd, data, count);
}

static int cut(int (*real)(int, off_t), int fd, off_t length) {
    char path[4096];
    if (!path_of(fd, path))
        return real(fd, length);
    pthread_mutex_lock(&lock);
    int failed = real(fd, length);
    if (!failed)
        record('t', path, length, "", 0);
    pthread_mutex_unlock(&lock);
    return failed;
}

int ftruncate(int fd, off_t length) { return cut(REAL(ftruncate), fd, length); }
int ftruncate64(int fd, off_t length) { return cut(REAL(ftruncate64), fd, length); }

static int synced(int (*real)(int), int fd) {
    char path[4096];
    if (!path_of(fd, path))
        return real(fd);
    pthread_mutex_lock(&lock);
    int failed = real(fd);
    if (!failed)
        record('s', path, 0, "", 0);
    pthread_mutex_unlock(&lock);
    return failed;
}

int fsync(int fd) { return synced(REAL(fsync), fd); }
int fdatasync(int fd) { return synced(REAL(fdatasync), fd); }

int unlink(const char *path) {
    if (!inside(path))
        return REAL(unlink)(path);
    pthread_mutex_lock(&lock);
    int failed = REAL(unlink)(path);
    if (!failed)
        record('u', path, 0, "", 0);
    pthread_mutex_unlock(&lock);
    return failed;
}

int rename(const char *from, const char *to) {
    if (!inside(from))
        return REAL(rename)(from, to);
    pthread_mutex_lock(&lock);
    int failed = REAL(rename)(from, to);
    if (!failed)
        record('r', from, 0, to, strlen(to));
    pthread_mutex_unlock(&lock);
    return failed;
}
