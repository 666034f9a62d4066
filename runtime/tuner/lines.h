// Lines over a socket.
#pragma once

#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <optional>
#include <string>

namespace kerf::runtime {

/// Whether it was written; a peer that is gone is no signal.
inline bool write_line(int socket, std::string line) {
  line += '\n';
  for (std::size_t at = 0; at < line.size();) {
    const ssize_t n = send(socket, line.data() + at, line.size() - at, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    at += static_cast<std::size_t>(n);
  }
  return true;
}

class LineReader {
 public:
  explicit LineReader(int socket) : socket_(socket) {}
  /// Nothing once the peer is gone.
  std::optional<std::string> next() {
    while (true) {
      if (const std::size_t end = held_.find('\n'); end != std::string::npos) {
        std::string line = held_.substr(0, end);
        held_.erase(0, end + 1);
        return line;
      }
      char bytes[4096];
      const ssize_t n = recv(socket_, bytes, sizeof bytes, 0);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return {};
      held_.append(bytes, static_cast<std::size_t>(n));
    }
  }

 private:
  int socket_;
  std::string held_;
};

}  // namespace kerf::runtime
