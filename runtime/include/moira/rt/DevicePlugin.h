//===- DevicePlugin.h - devices that are loaded when needed -----*- C++ -*-===//
// What libmoira_cuda.so offers to the runtime, and how it is found. Programs that use it link no
// CUDA library and start where there is none.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_DEVICEPLUGIN_H
#define MOIRA_RT_DEVICEPLUGIN_H

#include "moira/rt/ProgramRunner.h"

namespace moira::rt {

/// How one rank uses a device.
struct DeviceSetup {
  int device = 0;            // index among the visible ones
  bool shared = false;       // other ranks of this machine use the same device
  bool local = true;         // all ranks are on this machine
  double timeoutSeconds = 0; // that a rank waits for another one; 0: for ever
  bool graphs = true;        // record static regions after the first step and replay them
  int hostThreads = 1;       // that a call which the host makes for the device may use
};

/// Lives as long as the process. Thread-safe.
class DevicePlugin {
public:
  virtual ~DevicePlugin() = default;

  /// Visible devices; DeviceUnavailable says why there are none.
  virtual Expected<int> deviceCount() = 0;
  /// Makes one rank's program: memory, kernels, device communicators. Collective over
  /// setup.communicator. PlanTarget, OutOfMemory, DeviceUnavailable, DeviceFailed, BadRun,
  /// PlanBounds.
  virtual Expected<std::unique_ptr<ProgramRunner>> create(const ExecutorSetup &setup,
                                                          const DeviceSetup &device) = 0;
  /// Versions, devices, links and limits, one a line; never fails, says what is missing.
  virtual std::vector<std::string> describe() = 0;
  /// Every collective on the device with known values, and its speed; lines for rank 0. Collective.
  virtual Expected<std::vector<std::string>> selfTest(Communicator &communicator,
                                                      const DeviceSetup &device) = 0;
};

/// Raised whenever a class of the interface or of what it uses changes its layout.
inline constexpr int devicePluginVersion = 5;
/// Symbol `moiraDevicePluginVersion`: int(void).
using DevicePluginVersionFn = int();
/// Symbol `moiraDevicePlugin`: the plugin, owned by the library.
using DevicePluginFn = DevicePlugin *();

/// Loads libmoira_cuda.so from beside the program, from its ../lib or from beside libmoira_rt.so,
/// once a process.
/// DeviceUnavailable says what was tried.
Expected<DevicePlugin *> loadCudaPlugin();

/// The device of this process's rank: from `list` (--devices, by rank on this machine) or, without
/// one, the device with the rank's number. BadUsage or DeviceUnavailable with the numbers if there
/// are too few.
Expected<DeviceSetup> chooseDevice(DevicePlugin &plugin, const std::vector<int> &list,
                                   int localRank, int localSize, int worldSize);

} // namespace moira::rt

#endif // MOIRA_RT_DEVICEPLUGIN_H
