//===- Doctor.h - what this machine and build can do ------------*- C++ -*-===//
#ifndef MOIRA_TOOLS_MOERUN_DOCTOR_H
#define MOIRA_TOOLS_MOERUN_DOCTOR_H

#include "Options.h"

namespace moira::tool {

/// Prints versions, processor, memory, MPI, launcher and CUDA devices to stdout and runs a self
/// test of the collectives: between threads, and on the devices that there are, with line.ranks
/// ranks. Returns the exit code: 0, or that of a self test that fails.
int runDoctor(const CommandLine &line);

} // namespace moira::tool

#endif // MOIRA_TOOLS_MOERUN_DOCTOR_H
