//===- Reshard.h - training checkpoints cut anew ----------------*- C++ -*-===//
// A training run's state written as another number of ranks, or another mesh, would have saved it.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_CHECKPOINT_RESHARD_H
#define MOIRA_CHECKPOINT_RESHARD_H

#include "moira/rt/PlanFile.h"
#include "moira/rt/TrainingCheckpoint.h"

namespace moira::ckpt {

struct ReshardOptions {
  std::string plan; // of the mesh; or empty, and
  int ranks = 0;    // so many files, every tensor cut along its experts or its longest dimension
};

/// Writes the checkpoint as the only one of a run's directory `target`, which must not exist.
/// Every byte that is read is checked. BadCheckpoint; what TrainingCheckpoint::check says of a plan
/// that does not fit; BadRun if the plan does not train; CannotWrite. After a failure nothing is
/// left.
rt::Status reshard(const rt::TrainingCheckpoint &checkpoint, const std::string &target,
                   const ReshardOptions &options);

/// The plan's program that trains, or the first one that does. BadRun.
rt::Expected<const fb::Program *> trainingProgram(const rt::PlanFile &plan,
                                                  const std::string &path);

/// What its checkpoints hold: all but what is transient, in the plan's order.
std::vector<const fb::State *> savedStates(const rt::PlanFile &plan, const fb::Program &program);

} // namespace moira::ckpt

#endif // MOIRA_CHECKPOINT_RESHARD_H
