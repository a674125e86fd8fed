//===- KernelCost.h - how much an instruction computes and moves -*- C++ -*-===//
// Operations and bytes of calls, kernels and copies on one rank, by their operands' shapes. Seconds
// are Simulate.cpp's.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_SIM_KERNELCOST_H
#define MOIRA_RT_SIM_KERNELCOST_H

#include "moira/rt/PlanFile.h"

#include <map>

namespace moira::rt {

/// What one instruction does on a rank.
struct Work {
  enum Kind { nothing, product, attention, other, move } kind = nothing;
  double flops = 0;    ///< of products and attention
  double bytes = 0;    ///< read and written; move: over the link to the host
  bool narrow = false; ///< products of bf16
  bool onHost = false; ///< a call whose operands lie in the host's memory
};

/// Walks through a program's instructions in order.
class WorkReader {
public:
  /// `expertLoad`: rows of this rank's experts, as a multiple of the mean.
  WorkReader(const fb::Plan &plan, const fb::Program &program, double expertLoad)
      : plan(plan), program(program), expertLoad(expertLoad) {}

  Work read(const fb::Instr &instr);
  /// Bytes of a view at the initial bound.
  double bytesOf(uint32_t view) const;

private:
  double elementsOf(uint32_t view) const;
  double bytesAtLoad(uint32_t view, double load) const;
  bool isOnHost(uint32_t view) const;
  Work readCall(const fb::Instr &instr);
  void noteRows(const fb::Instr &instr, const std::string &name);
  double rowsOf(const fb::Instr &instr, const std::string &name) const;
  double productFlops(const fb::Instr &instr, const std::string &name) const;
  double attentionFlops(const fb::Instr &instr, bool gradient) const;
  double callBytes(const fb::Instr &instr, const std::string &name, double rows, double load) const;

  const fb::Plan &plan;
  const fb::Program &program;
  double expertLoad;
  std::map<int32_t, double> rowsOfLayer; ///< that this rank's experts get, by layer
};

} // namespace moira::rt

#endif // MOIRA_RT_SIM_KERNELCOST_H
