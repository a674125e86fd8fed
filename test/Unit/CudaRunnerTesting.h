//===- CudaRunnerTesting.h - golden plans on the fake CUDA ------*- C++ -*-===//
// A plugin whose devices are fakes, and golden models compiled for them. Only tests use it.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_TEST_UNIT_CUDARUNNERTESTING_H
#define MOIRA_TEST_UNIT_CUDARUNNERTESTING_H

#include "FakeCuda.h"
#include "RuntimeFiles.h"

#include "../../runtime/core/RunSession.h"
#include "../../runtime/cuda/CudaRunner.h"

#include <gtest/gtest.h>

namespace moira::test {

namespace rt = moira::rt;
namespace fb = moira::fb;

class FakePlugin final : public rt::DevicePlugin {
public:
  rt::Expected<int> deviceCount() override { return 16; }
  rt::Expected<std::unique_ptr<rt::ProgramRunner>> create(const rt::ExecutorSetup &setup,
                                                          const rt::DeviceSetup &given) override {
    rt::DeviceSetup device = given;
    device.device = setup.communicator->rank();
    return rt::cuda::makeRunner(setup, device);
  }
  std::vector<std::string> describe() override { return {}; }
  rt::Expected<std::vector<std::string>> selfTest(rt::Communicator &,
                                                  const rt::DeviceSetup &) override {
    return std::vector<std::string>();
  }
};

/// Compiles a golden model for the mesh: the plan for sm_90, and the same for the host, whose
/// kernels stand in for the device's. With --offload the host's plan has its moves, too: they are
/// no part of kernels.
struct Compiled {
  Compiled(const TempDir &dir, const std::string &model, const std::string &options)
      : folder(MOIRA_SOURCE_DIR "/test/golden/" + model) {
    for (std::string target : {"sm_90", "host"}) {
      std::string path = dir / target + ".moeplan";
      size_t offload = options.find("--offload=");
      std::string compile = MOIRA_MOE_OPT " " + folder + " --batch=2 --seq=24 --report=none ";
      if (target == "sm_90" || offload == std::string::npos) {
        run(compile + options + " --target=" + target + " -o " + path);
      } else { // the last option
        std::string file = dir / "localized.mlir", placed = dir / "placed.mlir";
        run(compile + options.substr(0, offload) + " --compile-to=localize -o " + file);
        run(MOIRA_MOE_OPT " " + file + " --plan-offload=states=" +
            options.substr(offload + std::string("--offload=").size()) + " -o " + placed);
        run(MOIRA_MOE_OPT " " + placed + " --compile-from=localize --report=none -o " + path);
      }
      rt::Expected<rt::PlanFile> plan = rt::PlanFile::open(path);
      EXPECT_TRUE(plan) << plan.status().str();
      (target == "host" ? host : device) = std::move(*plan);
    }
    rt::Expected<std::shared_ptr<const rt::HostImages>> loaded = rt::HostImages::load(host);
    EXPECT_TRUE(loaded) << loaded.status().str();
    images = *loaded;
    for (uint32_t k = 0; k < host.plan().kernels()->size(); ++k) {
      const fb::Kernel &kernel = *host.plan().kernels()->Get(k);
      fake::addKernel(kernel.name()->str(), images->kernel(k),
                      static_cast<int>(kernel.operands()->size()));
    }
  }
  static void run(const std::string &command) {
    EXPECT_EQ(std::system(command.c_str()), 0) << command;
  }
  std::string folder;
  rt::PlanFile device, host;
  std::shared_ptr<const rt::HostImages> images;
};

} // namespace moira::test

#endif // MOIRA_TEST_UNIT_CUDARUNNERTESTING_H
