// What times depend on beside the key: the machine.
#include <fstream>
#include <string>

#include "kerf/tuner.h"
#include "kerf/version.h"
#include "runtime/cuda/device.h"
#include "runtime/processors.h"

namespace kerf {

namespace {

std::string processor_name() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);) {
    const std::size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown " + Target::host().level();  // AArch64's has no names
}

}  // namespace

WisdomValidators validators_of(Device device) {
  WisdomValidators v;
  v.kerf = version();
  if (device.type == DeviceType::cpu) {
    v.device = processor_name();
    v.units = runtime::processors();
    return v;
  }
  const auto driver = cuda::Driver::open();
  const cuda::DeviceInfo info = cuda::device_info(*driver, device.ordinal);
  v.device = info.name;
  v.units = info.multiprocessors;
  v.driver = driver->version_text();
  return v;
}

}  // namespace kerf
