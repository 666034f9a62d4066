// What Tuning::record notes: calls whose blocks wisdom does not have, a line for each.
#pragma once

#include <string>
#include <vector>

#include "kerf/tuner.h"

namespace kerf::runtime {

struct TuneMiss {
  PlanDesc desc;
  std::int64_t tokens = 0;
};
/// Adds a line unless it is there. False, and nothing else, where the file cannot be written.
bool note_miss(const std::string& file, const PlanDesc& desc, std::int64_t tokens);
/// Lines that are none are left out.
std::vector<TuneMiss> read_misses(const std::string& file);
/// Takes the line out again. Throws DeviceError where the file cannot be written.
void forget_miss(const std::string& file, const TuneMiss& miss);

}  // namespace kerf::runtime
