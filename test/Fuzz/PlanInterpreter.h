//===- PlanInterpreter.h - runs accepted plans, for the fuzzer --*- C++ -*-===//
// The address sanitizer's view of "an accepted plan cannot make a host call leave its views": every
// view of an instruction is an allocation of its own.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_TEST_FUZZ_PLANINTERPRETER_H
#define MOIRA_TEST_FUZZ_PLANINTERPRETER_H

#include "moira/rt/PlanFile.h"

namespace moira::rt::test {

/// Runs the library calls and copies of every program of an accepted plan, for its first and last
/// rank and for the bounds 1, initial and largest, on memory filled from `seed`. Launches,
/// collectives and calls on more than a thousand elements are passed over. Aborts where a copy
/// would leave its input or a view its arena; what calls do is the sanitizers' to find. Calls may
/// fail.
void interpret(const PlanFile &file, uint64_t seed);

} // namespace moira::rt::test

#endif // MOIRA_TEST_FUZZ_PLANINTERPRETER_H
