// The three kinds of failure, told apart by what the caller can do about them.
#pragma once

#include <source_location>
#include <stdexcept>
#include <string>

namespace [[gnu::visibility("default")]] kerf {

/// Base of all errors thrown by Kerf.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The call is wrong: change it. Command line exit code 2.
class UsageError : public Error {
 public:
  using Error::Error;
  /// Prefixes "file.cpp:41: " (the file's base name), the place in the caller's source.
  UsageError(std::source_location where, const std::string& what);
};

/// This device, driver or block size cannot do it; another may. Command line exit code 3.
class DeviceError : public Error {
 public:
  using Error::Error;
};

/// Kerf broke one of its own rules: please report it. Command line exit code 4.
class InternalError : public Error {
 public:
  using Error::Error;
};

}  // namespace kerf
