//===- RouterFields.h - a gate as a C++ value -------------------*- C++ -*-===//
// The fields of #moe.router with their defaults, for code that builds gates. Meaning and
// constraints are in dialects/Moe/MoeDialect.td. Included by MoeDialect.h only, behind the enums.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_DIALECT_MOE_ROUTERFIELDS_H
#define MOIRA_DIALECT_MOE_ROUTERFIELDS_H

#include <cstdint>

namespace moira::moe {

struct RouterFields {
  int64_t k = 1;
  Score score = Score::softmax;
  RouteOrder order = RouteOrder::score_topk;
  int64_t groups = 1, groupKeep = 1;
  GroupScore groupScore = GroupScore::max;
  Renorm renorm = Renorm::none;
  double renormEpsilon = 0, renormClampMin = 0, jitterEps = 0, scale = 1;
  RouteApply apply = RouteApply::output;
};

} // namespace moira::moe

#endif // MOIRA_DIALECT_MOE_ROUTERFIELDS_H
