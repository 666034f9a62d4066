#include "kerf/error.h"

#include <fmt/format.h>

#include <string_view>

namespace kerf {

UsageError::UsageError(std::source_location where, const std::string& what)
    : Error([&] {
        std::string_view file = where.file_name();
        file.remove_prefix(file.find_last_of('/') + 1);  // npos + 1 is 0
        return fmt::format("{}:{}: {}", file, where.line(), what);
      }()) {}

}  // namespace kerf
