// Ends a process, or fills its disk, at the n-th operation that changes something below a folder.
//
// Preloaded (LD_PRELOAD), it stands before the C library. An operation is one call of a function below that names a
// path, or holds a descriptor, below the folder. FAULT_KILL ends the process before the n-th of them. FAULT_FULL lets
// all that need room fail with ENOSPC from the n-th on, as a full disk does.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { FAULT_NONE, FAULT_KILL, FAULT_FULL };

static char g_folder[PATH_MAX];
static size_t g_length;
static int g_kind;
static long g_at, g_count;

// folder: absolute, without links. at: from 1 on.
void fault_arm(const char* folder, int kind, long at) {
  snprintf(g_folder, sizeof g_folder, "%s/", folder);
  g_length = strlen(g_folder);
  g_kind = kind;
  g_at = at;
  g_count = 0;
}

// Operations since then; of FAULT_FULL, those that need room.
long fault_count(void) { return g_count; }

static int is_below(const char* path) {
  return g_length != 0 && strncmp(path, g_folder, g_length) == 0;
}

static int names_below(int folder, const char* path) {
  char whole[2 * PATH_MAX], link[64];
  if (g_length == 0) return 0;
  if (path[0] == '/') return is_below(path);
  if (folder == AT_FDCWD) {
    if (getcwd(whole, PATH_MAX) == NULL) return 0;
  } else {
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    const ssize_t n = readlink(link, whole, PATH_MAX);
    if (n < 0) return 0;
    whole[n] = '\0';
  }
  strcat(whole, "/");
  strncat(whole, path, PATH_MAX);
  return is_below(whole);
}

static int is_file_below(int file) {
  char link[64], path[PATH_MAX + 1];
  if (g_length == 0) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  const ssize_t n = readlink(link, path, PATH_MAX);
  if (n < 0) return 0;
  path[n] = '\0';
  return is_below(path);
}

// Counts an operation below the folder: whether it fails for want of room.
static int fails(int below, int needs_room) {
  if (!below || (g_kind == FAULT_FULL && !needs_room)) return 0;
  ++g_count;
  if (g_kind == FAULT_KILL && g_count == g_at) kill(getpid(), SIGKILL);
  if (g_kind != FAULT_FULL || g_count < g_at) return 0;
  errno = ENOSPC;
  return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define OF_FILE(type, name, parameters, arguments, needs_room) \
  type name parameters {                                       \
    if (fails(is_file_below(file), needs_room)) return -1;     \
    return REAL(name) arguments;                               \
  }

#define OF_PATH(name, parameters, arguments, needs_room)              \
  int name parameters {                                               \
    if (fails(names_below(AT_FDCWD, path), needs_room)) return -1;    \
    return REAL(name) arguments;                                      \
  }

OF_FILE(ssize_t, write, (int file, const void* bytes, size_t n), (file, bytes, n), 1)
OF_FILE(ssize_t, writev, (int file, const struct iovec* parts, int n), (file, parts, n), 1)
OF_FILE(ssize_t, pwrite, (int file, const void* bytes, size_t n, off_t at), (file, bytes, n, at), 1)
OF_FILE(ssize_t, pwrite64, (int file, const void* bytes, size_t n, off64_t at), (file, bytes, n, at), 1)
OF_FILE(int, ftruncate, (int file, off_t n), (file, n), 0)
OF_FILE(int, ftruncate64, (int file, off64_t n), (file, n), 0)
OF_FILE(int, fsync, (int file), (file), 0)
OF_FILE(int, unlinkat, (int file, const char* path, int flags), (file, path, flags), 0)
OF_PATH(mkdir, (const char* path, mode_t mode), (path, mode), 1)
OF_PATH(rmdir, (const char* path), (path), 0)
OF_PATH(unlink, (const char* path), (path), 0)
OF_PATH(truncate, (const char* path, off_t n), (path, n), 0)
OF_PATH(truncate64, (const char* path, off64_t n), (path, n), 0)
OF_PATH(rename, (const char* path, const char* to), (path, to), 0)
OF_PATH(chmod, (const char* path, mode_t mode), (path, mode), 0)

int symlink(const char* target, const char* path) {
  if (fails(names_below(AT_FDCWD, path), 1)) return -1;
  return REAL(symlink)(target, path);
}

int link(const char* target, const char* path) {
  if (fails(names_below(AT_FDCWD, path), 1)) return -1;
  return REAL(link)(target, path);
}

ssize_t sendfile64(int file, int from, off64_t* at, size_t n);
OF_FILE(ssize_t, sendfile64, (int file, int from, off64_t* at, size_t n), (file, from, at, n), 1)

ssize_t copy_file_range(int from, off64_t* at, int file, off64_t* to, size_t n, unsigned flags) {
  if (fails(is_file_below(file), 1)) return -1;
  return REAL(copy_file_range)(from, at, file, to, n, flags);
}

// Only those that make a file or empty one change anything.
#define OPEN(name, first, first_argument, folder)                         \
  int name(first const char* path, int flags, ...) {                      \
    mode_t mode = 0;                                                      \
    if (flags & O_CREAT) {                                                \
      va_list more;                                                       \
      va_start(more, flags);                                              \
      mode = va_arg(more, mode_t);                                        \
      va_end(more);                                                       \
    }                                                                     \
    const int changes = (flags & (O_CREAT | O_TRUNC)) != 0;               \
    if (changes && fails(names_below(folder, path), flags & O_CREAT)) return -1; \
    return REAL(name)(first_argument path, flags, mode);                  \
  }
#define COMMA ,

OPEN(open, , , AT_FDCWD)
OPEN(open64, , , AT_FDCWD)
OPEN(openat, int folder COMMA, folder COMMA, folder)
OPEN(openat64, int folder COMMA, folder COMMA, folder)
