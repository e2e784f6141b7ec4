/* Breaks I/O and clocks on purpose, below Python and SQLite alike: palimpsest/faultlayer.py compiles it, LD_PRELOADs it
 * into the processes of a gateway under test and steers it through a file that all of them map. Never part of a gateway
 * that serves anybody.
 *
 * A rule strikes where a process (words of its command line), an operation and a path match: SIGKILL before or after the
 * call, EIO, or ENOSPC. Without rules it adds: an offset to the wall clock, another number of free bytes, and the
 * platter: what a disk would hold after power loss, as POSIX promises it and no more. fsync(2) of a file copies its
 * content there, fsync(2) of a folder the names in it; nothing else gets there.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { FSYNC = 1, FOLDER = 2, RENAME = 4, UNLINK = 8, WRITE = 16, SEND = 32 };
enum { KILL_BEFORE = 1, KILL_AFTER = 2, FAIL_EIO = 3, FAIL_ENOSPC = 4 };
#define RULES 32

struct rule { /* 256 bytes; palimpsest/faultlayer.py has the same */
    int32_t left, skip, struck, action;
    uint32_t operations, spare;
    char role[104], path[128];
};
struct control {
    int64_t clock_offset_ns, free_bytes; /* free_bytes < 0: the truth */
    char root[504], platter[504];        /* platter empty: none is kept */
    struct rule rules[RULES];
};

static struct control *control;
static char command[4096];

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void begin(void) {
    const char *place = getenv("PALIMPSEST_FAULT_LAYER");
    int fd = place ? open(place, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *found = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    fd = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t size = fd < 0 ? 0 : read(fd, command, sizeof command - 1);
    if (fd >= 0) close(fd);
    for (ssize_t at = 0; at + 1 < size; at++)
        if (!command[at]) command[at] = ' ';
    if (found != MAP_FAILED) control = found;
}

/* The action of the first rule that this call meets; 0: none. */
static int struck(uint32_t operation, const char *path) {
    for (int at = 0; at < RULES; at++) {
        struct rule *rule = &control->rules[at];
        if (__atomic_load_n(&rule->left, __ATOMIC_ACQUIRE) <= 0 || !(rule->operations & operation)) continue;
        if (!strstr(command, rule->role) || !strstr(path, rule->path)) continue;
        if (__atomic_fetch_sub(&rule->skip, 1, __ATOMIC_ACQ_REL) > 0) continue;
        if (__atomic_fetch_sub(&rule->left, 1, __ATOMIC_ACQ_REL) <= 0) continue;
        __atomic_fetch_add(&rule->struck, 1, __ATOMIC_ACQ_REL);
        return rule->action;
    }
    return 0;
}

static int watched(uint32_t operation) {
    for (int at = 0; control && at < RULES; at++)
        if (control->rules[at].left > 0 && control->rules[at].operations & operation) return 1;
    return 0;
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

static int before(uint32_t operation, const char *path) {
    int action = struck(operation, path);
    if (action == KILL_BEFORE) die();
    if (action == FAIL_EIO) errno = EIO;
    if (action == FAIL_ENOSPC) errno = ENOSPC;
    return action;
}

static void path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, PATH_MAX - 1);
    path[size > 0 ? size : 0] = 0;
}

static int act_on(int fd, uint32_t operation) {
    char path[PATH_MAX];
    if (!watched(operation)) return 0;
    path_of(fd, path);
    return before(operation, path);
}

/* --- the platter --- */

static void key_of(int folder, const char *name, int flags, char *key, unsigned *mode) {
    struct statx found;
    if (statx(folder, name, flags, STATX_BASIC_STATS | STATX_BTIME, &found)) {
        *key = 0;
        return;
    }
    *mode = found.stx_mode; /* the time of birth, because inode numbers are used again */
    snprintf(key, 96, "%llu-%lld-%u", (unsigned long long)found.stx_ino, (long long)found.stx_btime.tv_sec,
             found.stx_btime.tv_nsec);
}

static void copy_file(int fd, FILE *out) {
    /* Never by another descriptor where this one can read: closing it would drop SQLite's locks (fcntl(2)). */
    char link[64], piece[1 << 16];
    int from = fd;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if ((fcntl(fd, F_GETFL) & O_ACCMODE) == O_WRONLY) from = open(link, O_RDONLY | O_CLOEXEC);
    ssize_t got;
    for (off_t at = 0; (got = pread(from, piece, sizeof piece, at)) > 0; at += got) fwrite(piece, 1, got, out);
    if (from != fd) close(from);
}

static void copy_folder(int fd, FILE *out) {
    char link[64], key[96];
    unsigned mode = 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    DIR *folder = opendir(link);
    for (struct dirent *each; folder && (each = readdir(folder));) {
        if (!strcmp(each->d_name, ".") || !strcmp(each->d_name, "..")) continue;
        key_of(dirfd(folder), each->d_name, AT_SYMLINK_NOFOLLOW, key, &mode);
        if (*key && (S_ISREG(mode) || S_ISDIR(mode))) fprintf(out, "%c %s %s%c", S_ISDIR(mode) ? 'd' : 'f', key, each->d_name, 0);
    }
    if (folder) closedir(folder);
}

static void to_platter(int fd) {
    static unsigned counter;
    char path[PATH_MAX], key[96], temporary[PATH_MAX], final[PATH_MAX];
    unsigned mode = 0;
    path_of(fd, path);
    size_t root = strlen(control->root);
    if (strncmp(path, control->root, root) || (path[root] && path[root] != '/')) return;
    key_of(fd, "", AT_EMPTY_PATH, key, &mode);
    if (!*key || !(S_ISREG(mode) || S_ISDIR(mode))) return;
    snprintf(temporary, sizeof temporary, "%s/.t-%d-%u", control->platter, getpid(),
             __atomic_fetch_add(&counter, 1, __ATOMIC_RELAXED));
    FILE *out = fopen(temporary, "we");
    if (!out) return;
    S_ISDIR(mode) ? copy_folder(fd, out) : copy_file(fd, out);
    fclose(out);
    snprintf(final, sizeof final, "%s/%s", control->platter, path[root] ? key : "root");
    REAL(rename);
    real(temporary, final);
}

static int synced(int fd, int (*call)(int)) {
    struct stat found;
    if (!control) return call(fd);
    int kept = errno, folder = !fstat(fd, &found) && S_ISDIR(found.st_mode);
    int action = act_on(fd, folder ? FOLDER : FSYNC);
    if (action >= FAIL_EIO) return -1;
    errno = kept;
    int result = call(fd);
    kept = errno;
    if (result == 0 && *control->platter) to_platter(fd);
    if (action == KILL_AFTER) die();
    errno = kept;
    return result;
}

int fsync(int fd) { REAL(fsync); return synced(fd, real); }
int fdatasync(int fd) { REAL(fdatasync); return synced(fd, real); }

/* --- names --- */

#define ON_PATH(operation, path, call) \
    if (!watched(operation)) return call; \
    int action = before(operation, path); \
    if (action >= FAIL_EIO) return -1; \
    int result = call; \
    if (action == KILL_AFTER) die(); \
    return result

int rename(const char *old, const char *new) { REAL(rename); ON_PATH(RENAME, new, real(old, new)); }
int renameat(int a, const char *old, int b, const char *new) { REAL(renameat); ON_PATH(RENAME, new, real(a, old, b, new)); }
int unlink(const char *path) { REAL(unlink); ON_PATH(UNLINK, path, real(path)); }
int unlinkat(int folder, const char *path, int flags) { REAL(unlinkat); ON_PATH(UNLINK, path, real(folder, path, flags)); }

/* --- bytes --- */

#define ON_FD(operation, fd, call) \
    int action = act_on(fd, operation); \
    if (action >= FAIL_EIO) return -1; \
    ssize_t result = call; \
    if (action == KILL_AFTER) die(); \
    return result

ssize_t write(int fd, const void *data, size_t size) { REAL(write); ON_FD(WRITE, fd, real(fd, data, size)); }
ssize_t writev(int fd, const struct iovec *data, int count) { REAL(writev); ON_FD(WRITE, fd, real(fd, data, count)); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { REAL(pwrite); ON_FD(WRITE, fd, real(fd, data, size, at)); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) { REAL(pwrite64); ON_FD(WRITE, fd, real(fd, data, size, at)); }
ssize_t send(int fd, const void *data, size_t size, int flags) { REAL(send); ON_FD(SEND, fd, real(fd, data, size, flags)); }
ssize_t sendmsg(int fd, const struct msghdr *data, int flags) { REAL(sendmsg); ON_FD(SEND, fd, real(fd, data, flags)); }

/* --- free space, wall clock --- */

#define SPACE(name, kind, what) \
    int name(what, struct kind *found) { \
        REAL(name); \
        int result = real(place, found); \
        if (control && control->free_bytes >= 0 && result == 0) \
            found->f_bavail = found->f_bfree = control->free_bytes / found->f_frsize; \
        return result; \
    }
SPACE(statvfs, statvfs, const char *place)
SPACE(statvfs64, statvfs64, const char *place)
SPACE(fstatvfs, statvfs, int place)
SPACE(fstatvfs64, statvfs64, int place)

static int64_t offset_ns(void) { return control ? __atomic_load_n(&control->clock_offset_ns, __ATOMIC_RELAXED) : 0; }

int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(clock_gettime);
    int result = real(clock, now);
    int64_t offset = offset_ns();
    if (offset && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t all = now->tv_sec * 1000000000LL + now->tv_nsec + offset;
        now->tv_sec = all / 1000000000LL;
        now->tv_nsec = all % 1000000000LL;
    }
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    REAL(gettimeofday);
    int result = real(now, zone);
    now->tv_sec += offset_ns() / 1000000000LL;
    return result;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
