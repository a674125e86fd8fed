//===- SelfTest.h - do the collectives work here? ---------------*- C++ -*-===//
#ifndef MOIRA_RT_CUDA_SELFTEST_H
#define MOIRA_RT_CUDA_SELFTEST_H

#include "moira/rt/DevicePlugin.h"

namespace moira::rt::cuda {

/// Every collective between all ranks of `host` with known values, and its speed. Lines for rank 0,
/// none for others. Internal if values are wrong, else what the collectives fail with.
Expected<std::vector<std::string>> testCollectives(Communicator &host, const DeviceSetup &device);

} // namespace moira::rt::cuda

#endif // MOIRA_RT_CUDA_SELFTEST_H
