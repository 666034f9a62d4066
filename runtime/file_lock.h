// Advisory locks of files, which the kernel takes back when their process dies.
#pragma once

#include <fcntl.h>

#include <cerrno>
#include <chrono>
#include <thread>

namespace kerf::runtime {

/// Locks an open file for as long as its descriptor is open, against threads of this process too. 0, ETIMEDOUT where
/// others held it for so long, or another errno.
inline int lock_file(int fd, std::chrono::seconds wait) {
  const auto end = std::chrono::steady_clock::now() + wait;
  for (struct flock whole{.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 0, .l_pid = 0};
       fcntl(fd, F_OFD_SETLK, &whole) != 0;) {
    if (errno != EAGAIN && errno != EACCES && errno != EINTR) return errno;
    if (std::chrono::steady_clock::now() > end) return ETIMEDOUT;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return 0;
}

}  // namespace kerf::runtime
