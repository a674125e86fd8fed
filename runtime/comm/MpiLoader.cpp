//===- MpiLoader.cpp - finds and loads the MPI plugin -----------------------===//
// The only way from the runtime to MPI: dlopen, so that programs start where no MPI is installed.
//===----------------------------------------------------------------------===//
#include "MpiPlugin.h"

#include <dlfcn.h>
#include <filesystem>

namespace moira::rt {

namespace {

constexpr const char *pluginName = "libmoira_comm_mpi.so";

std::vector<std::string> candidates() {
  std::vector<std::string> paths;
  std::error_code error;
  std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  if (!error) {
    paths.push_back((self.parent_path() / pluginName).string());
    paths.push_back((self.parent_path().parent_path() / "lib" / pluginName).string());
  }
  paths.push_back(pluginName); // the loader's own search path
  return paths;
}

Status unavailable(std::string message) {
  return Status(ErrorId::MpiUnavailable, std::move(message));
}

struct Plugin {
  void *library;
  std::string path;
};

Expected<Plugin> loadPlugin() {
  std::string tried;
  for (const std::string &path : candidates()) {
    // Global, because Open MPI loads components that look for its symbols there.
    if (void *library = dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL))
      return Plugin{library, path};
    tried += (tried.empty() ? "" : "; ") + std::string(dlerror());
  }
  return unavailable(
      "the MPI plugin cannot be loaded (" + tried +
      "); install Open MPI and build again, or start without a launcher for ranks as threads");
}

} // namespace

Expected<std::string> findMpi() {
  Expected<Plugin> plugin = loadPlugin();
  if (!plugin)
    return plugin.takeStatus();
  return plugin->path;
}

Expected<std::unique_ptr<Communicator>> makeMpiCommunicator(double timeoutSeconds) {
  LaunchInfo launch = discoverLaunch();
  Expected<Plugin> plugin = loadPlugin();
  if (!plugin)
    return plugin.takeStatus();
  void *library = plugin->library;
  auto *version = reinterpret_cast<MpiPluginVersionFn *>(dlsym(library, "moiraMpiPluginVersion"));
  auto *make =
      reinterpret_cast<MakeMpiCommunicatorFn *>(dlsym(library, "moiraMakeMpiCommunicator"));
  if (!version || !make || version() != mpiPluginVersion)
    return unavailable(format(
        "%s is of another version than this program (%d, needed %d); install both from one build",
        pluginName, version ? version() : 0, mpiPluginVersion));
  Status error;
  std::unique_ptr<Communicator> communicator(make(timeoutSeconds, &error));
  if (!communicator)
    return error;
  if (launch.launcher != "none" && communicator->size() != launch.size)
    return unavailable(format("%s says that there are %d ranks but MPI sees %d; %s",
                              launch.launcher.c_str(), launch.size, communicator->size(),
                              launch.launcher == "srun"
                                  ? "use srun --mpi=pmix"
                                  : "use the mpirun of the same MPI that Moira was built with"));
  return communicator;
}

} // namespace moira::rt
