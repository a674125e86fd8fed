//===- Doctor.cpp - what this machine and build can do --------------------===//
// See Doctor.h.
//===----------------------------------------------------------------------===//
#include "Doctor.h"

#include "moira/rt/Agree.h"
#include "moira/rt/Collectives.h"
#include "moira/rt/DevicePlugin.h"
#include "moira/rt/Image.h"
#include "moira/rt/Memory.h"
#include "moira/rt/Mesh.h"
#include "moira/rt/PlanFile.h"
#include "moira/rt/Ranks.h"
#include "moira/rt/Spawn.h"

#include <cstdio>
#include <fstream>

namespace moira::tool {
namespace {

using namespace moira::rt;

std::string processorName() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);)
    if (line.rfind("model name", 0) == 0)
      return line.substr(line.find(':') + 2);
  return "unknown processor";
}

/// Sends every rank's number through each kind of collective and checks what arrives.
Status selfTest() {
  constexpr int kRanks = 4;
  Ranks ranks = std::move(*Ranks::threads(kRanks, 10));
  return ranks.each([&](int local) -> Ranks::Verdict {
    Communicator &communicator = ranks.communicator(local);
    Group world = worldGroup(communicator);
    Staging staging;
    float in[kRanks], out[kRanks], one;
    for (int i = 0; i < kRanks; ++i)
      in[i] = static_cast<float>(10 * local + i);
    auto ref = [](float *data, int64_t n) { return TensorRef{data, fb::DType::f32, {n}}; };
    auto wrong = [&](const char *what) {
      return Status(ErrorId::Internal, format("self test: %s gave wrong values", what));
    };
    CollectiveSpec spec;
    spec.kind = fb::CollectiveKind::all_reduce;
    if (Status s = runCollective(spec, world, communicator, ref(in, kRanks), ref(out, kRanks),
                                 staging, "self test");
        !s)
      return s;
    for (int i = 0; i < kRanks; ++i)
      if (out[i] != static_cast<float>(60 + 4 * i))
        return wrong("all_reduce");
    spec.kind = fb::CollectiveKind::reduce_scatter;
    if (Status s = runCollective(spec, world, communicator, ref(in, kRanks), ref(&one, 1), staging,
                                 "self test");
        !s)
      return s;
    if (one != static_cast<float>(60 + 4 * local))
      return wrong("reduce_scatter");
    spec.kind = fb::CollectiveKind::all_gather;
    if (Status s = runCollective(spec, world, communicator, ref(&one, 1), ref(out, kRanks), staging,
                                 "self test");
        !s)
      return s;
    for (int i = 0; i < kRanks; ++i)
      if (out[i] != static_cast<float>(60 + 4 * i))
        return wrong("all_gather");
    spec.kind = fb::CollectiveKind::all_to_all;
    if (Status s = runCollective(spec, world, communicator, ref(in, kRanks), ref(out, kRanks),
                                 staging, "self test");
        !s)
      return s;
    for (int i = 0; i < kRanks; ++i)
      if (out[i] != static_cast<float>(10 * i + local))
        return wrong("all_to_all");
    return Status();
  });
}

/// Joins the ranks that testDevices has started and tests with them.
Status testAsRank(const CommandLine &line, const LaunchInfo &launch) {
  bool told = false;
  Expected<std::unique_ptr<Communicator>> world =
      makeLaunchedCommunicator(launch, line.options.timeoutSeconds, &told);
  if (!world)
    return told ? Status() : world.takeStatus();
  Expected<DevicePlugin *> plugin = loadCudaPlugin();
  if (!plugin)
    return plugin.takeStatus();
  Expected<DeviceSetup> device =
      chooseDevice(**plugin, line.options.devices, launch.localRank, launch.localSize, launch.size);
  if (Status s = agree(device ? Status() : device.takeStatus(), **world, "choosing devices"); !s)
    return launch.rank == 0 ? s : Status();
  device->timeoutSeconds = line.options.timeoutSeconds;
  Expected<std::vector<std::string>> lines = (*plugin)->selfTest(**world, *device);
  if (!lines) {
    (*world)->abort(lines.status());
    return (*world)->toldElsewhere() ? Status() : lines.takeStatus();
  }
  for (const std::string &text : *lines)
    std::printf("self test   %s\n", text.c_str());
  return {};
}

/// Every collective between `ranks` processes, each with its device.
int testDevices(const CommandLine &line) {
  SpawnOptions spawn;
  spawn.program = ownProgram();
  spawn.arguments = ownArguments();
  spawn.ranks = line.ranks.value_or(1);
  std::fflush(stdout);
  Expected<SpawnResult> result = runRanksAsProcesses(spawn);
  Status status = result ? result->status : result.takeStatus();
  if (!status)
    std::fputs(status.str().c_str(), stderr);
  return status ? result->exitCode : status.exitCode();
}

/// Without a device a test that was asked for is not passed; one that was not asked for is left
/// out.
int refuseTest(const CommandLine &line) {
  const char *asks = line.ranks ? "--ranks" : line.options.devices.empty() ? "" : "--devices";
  if (!*asks)
    return 0;
  Status status(ErrorId::DeviceUnavailable,
                format("%s asks for a test of CUDA devices, and there is none here; leave it out "
                       "to see what this machine has",
                       asks));
  std::fflush(stdout);
  std::fputs(status.str().c_str(), stderr);
  return status.exitCode();
}

} // namespace

int runDoctor(const CommandLine &line) {
  if (LaunchInfo launch = discoverLaunch(); launch.launcher == "moe-run") {
    Status status = testAsRank(line, launch);
    std::fflush(stdout);
    if (!status)
      std::fputs(status.str().c_str(), stderr);
    return status.exitCode();
  }
  std::printf("moira       %s, plan format %u, schema %016llx\n", MOIRA_VERSION, kPlanVersion,
              static_cast<unsigned long long>(kSchemaHash));
  std::printf("processor   %s, %s, %d threads usable\n", cpuArchitecture().c_str(),
              processorName().c_str(), usableCores());
  std::string features;
  for (const char *name : {"sse4.2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw",
                           "avx512vl", "avx512bf16", "amx_bf16", "neon"})
    if (missingFeatures(name).empty())
      features += std::string(" ") + name;
  std::printf("features   %s\n", features.c_str());
  std::printf("memory      %s available\n", byteText(availableMemory()).c_str());
  LaunchInfo launch = discoverLaunch();
  if (launch.launcher == "none")
    std::printf("launcher    none: ranks are threads of this process\n");
  else
    std::printf("launcher    %s: rank %d of %d\n", launch.launcher.c_str(), launch.rank,
                launch.size);
  Expected<std::string> mpi = findMpi();
  if (mpi)
    std::printf("MPI         found, %s\n", mpi->c_str());
  else
    std::printf("MPI         not found: %s\n", mpi.status().diagnostics().front().message.c_str());
  Expected<DevicePlugin *> plugin = loadCudaPlugin();
  int devices = 0;
  if (plugin) {
    for (const std::string &text : (*plugin)->describe())
      std::printf("CUDA        %s\n", text.c_str());
    if (Expected<int> count = (*plugin)->deviceCount())
      devices = *count;
  } else {
    std::printf("CUDA        %s\n", plugin.status().diagnostics().front().message.c_str());
  }
  Status test = selfTest();
  std::printf("self test   collectives of 4 thread ranks: %s\n", test ? "passed" : "FAILED");
  if (!test)
    std::fputs(test.str().c_str(), stderr);
  int deviceCode = devices > 0 ? testDevices(line) : refuseTest(line);
  return test ? deviceCode : test.exitCode();
}

} // namespace moira::tool
