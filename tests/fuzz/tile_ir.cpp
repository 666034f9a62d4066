#include <optional>
#include <string_view>

#include "kerf/error.h"
#include "lib/ir/ir.h"
#include "lib/passes/passes.h"
#include "tests/fuzz/checks.h"

namespace kerf::fuzz {

void tile_ir(Bytes bytes) {
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  std::optional<ir::Program> program;
  try {
    program = ir::parse(text, "fuzz");
  } catch (const UsageError& e) {
    require(std::string_view(e.what()).size() > 5, "an error says nothing");
    return;
  }
  const std::string printed = ir::print(*program);
  require(ir::print(ir::parse(printed, "fuzz")) == printed, "what was printed is read otherwise");
  for (const bool stage : {false, true}) ir::verify(passes::pipeline(*program, stage));
}

}  // namespace kerf::fuzz
