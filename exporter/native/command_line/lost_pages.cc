// An end with a message where a mapped file is cut short while it is used, which otherwise is a crash.
//
// For the command line alone: the handling of signals is an app's own affair. All here is what a signal handler may do:
// no memory is taken, and only system calls are made.
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstring>

#include "tinyqmoe/tinyqmoe.h"

namespace {

constexpr size_t kMaxText = 1024;
constexpr size_t kMaxLine = 4096 + 256;  // of the table of maps: a path, and what stands before it

char g_before[kMaxText];
char g_after[kMaxText];
int g_exit_code;
std::atomic_flag g_ends = ATOMIC_FLAG_INIT;

void say(const char* text) {
  size_t n = std::strlen(text);
  while (n > 0) {
    const ssize_t written = write(STDERR_FILENO, text, n);
    if (written <= 0) return;
    text += written;
    n -= static_cast<size_t>(written);
  }
}

uint64_t read_hex(const char** at) {
  uint64_t value = 0;
  for (;; ++*at) {
    const char c = **at;
    if (c >= '0' && c <= '9') {
      value = value << 4 | static_cast<uint64_t>(c - '0');
    } else if (c >= 'a' && c <= 'f') {
      value = value << 4 | static_cast<uint64_t>(c - 'a' + 10);
    } else {
      return value;
    }
  }
}

// The path in a line "begin-end rights offset device inode path" that has the address; else null.
const char* path_of(const char* line, uint64_t address) {
  const uint64_t begin = read_hex(&line);
  if (*line++ != '-' || address < begin || address >= read_hex(&line)) return nullptr;
  return std::strchr(line, '/');
}

// Says the name of the file that is mapped at an address, as Linux lists it.
void say_file(uint64_t address) {
  static char line[kMaxLine];
  const int file = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  size_t n = 0;
  char c;
  while (file >= 0 && read(file, &c, 1) == 1) {
    if (c != '\n') {
      if (n < kMaxLine - 1) line[n++] = c;
      continue;
    }
    line[n] = 0;
    n = 0;
    if (const char* const path = path_of(line, address)) return say(path);
  }
  say("a mapped file");
}

void end(int number, siginfo_t* info, void*) {
  if (info->si_code != BUS_ADRERR) {  // of something else than a page that its file does not have
    signal(number, SIG_DFL);
    raise(number);  // comes when this returns
    return;
  }
  while (g_ends.test_and_set()) pause();  // another thread speaks already
  say(g_before);
  say_file(reinterpret_cast<uint64_t>(info->si_addr));
  say(g_after);
  _exit(g_exit_code);
}

}  // namespace

extern "C" {

// Ends the process with before, the name of the file, after, and a code, when a page of a mapped file is not there.
TINYQMOE_API tinyqmoe_status tinyqmoe_end_on_lost_pages(const char* before, const char* after, int exit_code) {
  if (std::strlen(before) >= kMaxText || std::strlen(after) >= kMaxText) return TINYQMOE_BAD_ARGUMENT;
  std::strcpy(g_before, before);
  std::strcpy(g_after, after);
  g_exit_code = exit_code;
  struct sigaction action = {};
  action.sa_sigaction = end;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGBUS, &action, nullptr);
  return TINYQMOE_OK;
}

}  // extern "C"
