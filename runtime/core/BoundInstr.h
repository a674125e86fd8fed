//===- BoundInstr.h - an instruction with its addresses ---------*- C++ -*-===//
// What Binding.cpp makes once and Executor.cpp runs often.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CORE_BOUNDINSTR_H
#define MOIRA_RT_CORE_BOUNDINSTR_H

#include "moira/rt/Executor.h"

namespace moira::rt {

/// Most operands that a generated kernel may have.
inline constexpr size_t kMaxOperands = 16;

struct Executor::Bound {
  fb::InstrKind kind = fb::InstrKind::record;
  std::vector<TensorRef> in, out;
  // launch
  void *kernel = nullptr;
  std::vector<void *> operands;
  int64_t rows = 0;
  // call
  std::string_view call;
  CallParams params;
  bool isRoute = false;
  // collective
  CollectiveSpec collective;
  const Group *group = nullptr;
  // copy: the box of the input that the output is
  Box box;
  // fill
  double fill = 0;
};

} // namespace moira::rt

#endif // MOIRA_RT_CORE_BOUNDINSTR_H
