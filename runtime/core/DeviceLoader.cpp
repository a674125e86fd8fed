//===- DeviceLoader.cpp - finds and loads the CUDA plugin -----------------===//
// See DevicePlugin.h.
//===----------------------------------------------------------------------===//
#include "moira/rt/DevicePlugin.h"

#include <algorithm>
#include <dlfcn.h>
#include <filesystem>

namespace moira::rt {
namespace {

constexpr const char *kPlugin = "libmoira_cuda.so";

Status unavailable(std::string message) {
  return Status(ErrorId::DeviceUnavailable, std::move(message));
}

Expected<DevicePlugin *> load() {
  std::vector<std::string> paths;
  std::error_code error;
  std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  if (!error)
    paths = {(self.parent_path() / kPlugin).string(),
             (self.parent_path().parent_path() / "lib" / kPlugin).string()};
  // In a program of another language this code is in libmoira_rt.so.
  if (Dl_info here; dladdr(reinterpret_cast<void *>(&loadCudaPlugin), &here) && here.dli_fname)
    paths.push_back((std::filesystem::path(here.dli_fname).parent_path() / kPlugin).string());
  paths.push_back(kPlugin);
  std::string tried;
  void *library = nullptr;
  for (const std::string &path : paths) {
    library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library)
      break;
    tried += (tried.empty() ? "" : "; ") + std::string(dlerror());
  }
  if (!library)
    return unavailable("the CUDA plugin cannot be loaded (" + tried +
                       "); build Moira where a CUDA toolkit is installed, or compile the plan with "
                       "--target=host");
  auto *version =
      reinterpret_cast<DevicePluginVersionFn *>(dlsym(library, "moiraDevicePluginVersion"));
  auto *plugin = reinterpret_cast<DevicePluginFn *>(dlsym(library, "moiraDevicePlugin"));
  if (!version || !plugin || version() != devicePluginVersion)
    return unavailable(format("%s is of another version than this program (%d, needed %d); install "
                              "both from one build",
                              kPlugin, version ? version() : 0, devicePluginVersion));
  return plugin();
}

} // namespace

Expected<DevicePlugin *> loadCudaPlugin() {
  static Expected<DevicePlugin *> plugin = load();
  return plugin;
}

Expected<DeviceSetup> chooseDevice(DevicePlugin &plugin, const std::vector<int> &list,
                                   int localRank, int localSize, int worldSize) {
  Expected<int> count = plugin.deviceCount();
  if (!count)
    return count.takeStatus();
  DeviceSetup setup;
  setup.local = localSize == worldSize;
  if (list.empty()) {
    if (localSize > *count) {
      std::string same;
      for (int r = 0; r < localSize; ++r)
        same += (r ? "," : "") + std::to_string(r % *count);
      return unavailable(format("%d ranks run on this machine and %d GPU%s visible; use more GPUs "
                                "or machines, or let ranks share them with --devices=%s",
                                localSize, *count, *count == 1 ? " is" : "s are", same.c_str()));
    }
    setup.device = localRank;
    return setup;
  }
  if (static_cast<int>(list.size()) < localSize)
    return Status(ErrorId::BadUsage,
                  format("--devices names %zu devices, %d ranks run on this machine; name one for "
                         "each rank",
                         list.size(), localSize));
  for (int r = 0; r < localSize; ++r)
    if (list[r] < 0 || list[r] >= *count)
      return unavailable(format("--devices names device %d, but %d %s visible, counted from 0",
                                list[r], *count, *count == 1 ? "is" : "are"));
  setup.device = list[localRank];
  setup.shared = std::count(list.begin(), list.begin() + localSize, setup.device) > 1;
  return setup;
}

} // namespace moira::rt
