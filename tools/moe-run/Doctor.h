//===- Doctor.h - what this machine and build can do ------------*- C++ -*-===//
#ifndef MOIRA_TOOLS_MOERUN_DOCTOR_H
#define MOIRA_TOOLS_MOERUN_DOCTOR_H

namespace moira::tool {

/// Prints versions, processor, memory, MPI and launcher to stdout and runs a self test of the
/// thread collectives. Returns the exit code: 0, or 4 if the self test fails.
int runDoctor();

} // namespace moira::tool

#endif // MOIRA_TOOLS_MOERUN_DOCTOR_H
