//===- Image.h - a plan's host kernels in memory ----------------*- C++ -*-===//
// Loading the ELF shared objects that a plan carries. They are code: whoever runs a plan trusts its
// author. Checked before loading: architecture and instruction set.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_IMAGE_H
#define MOIRA_RT_IMAGE_H

#include "moira/rt/PlanFile.h"

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace moira::rt {

/// The kernels of a plan, by kernel index. Shared by the ranks of a process.
class HostImages {
public:
  /// Loads every host_object section and looks up every kernel that lies in one. PlanTarget if this
  /// CPU cannot run it, BadRun if the object cannot be loaded or lacks a kernel.
  static Expected<std::shared_ptr<const HostImages>> load(const PlanFile &plan);
  ~HostImages();
  HostImages(const HostImages &) = delete;
  HostImages &operator=(const HostImages &) = delete;

  /// Address of kernel `index`, null if its section is not for the host.
  void *kernel(size_t index) const { return kernels[index]; }

private:
  HostImages() = default;
  std::vector<void *> handles;
  std::vector<int> files; // of the handles
  std::vector<void *> kernels;
};

/// Instruction-set features of this CPU in LLVM's names ("avx2", "sse4.2"), sorted.
const std::vector<std::string> &cpuFeatures();
/// "x86_64", "aarch64", …
std::string cpuArchitecture();
/// What of "+avx2,+fma,-avx512f" this CPU lacks; empty if it has all.
std::vector<std::string> missingFeatures(std::string_view features);

} // namespace moira::rt

#endif // MOIRA_RT_IMAGE_H
