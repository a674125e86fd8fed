//===- FakeCuda.h - CUDA and NCCL without a device --------------*- C++ -*-===//
// Stands in for the CUDA runtime, the driver, the library calls and NCCL, so that what lies above
// them can be tested anywhere. Streams run their work late and in any order that the events allow,
// on host memory, one "device" a rank; library calls are the host's, kernels the host's code.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_TEST_UNIT_FAKECUDA_H
#define MOIRA_TEST_UNIT_FAKECUDA_H

#include <cstdint>
#include <string>

namespace moira::test::fake {

/// Choices of what runs next come from here.
void seed(uint64_t value);
/// Code for the kernel of this name, `operands` pointers and the rows.
void addKernel(const std::string &name, void *code, int operands);
/// What cudaMalloc may give on each device.
void setMemory(uint64_t bytes);
/// From the n-th launch of a kernel on (counted from 1), all of the device fails; 0: never.
/// `noticed`: the next library call fails with it, else only who asks for the end of the work
/// learns of it.
void failAtLaunch(int n, bool noticed = false);
/// Inputs of library calls so far that may be read before the work right before the call has ended.
/// One that this work changes is complained of (2).
int settledInputs();
/// Graph launches so far, and bytes of device memory that are allocated now.
int graphLaunches();
uint64_t allocated();

} // namespace moira::test::fake

#endif // MOIRA_TEST_UNIT_FAKECUDA_H
