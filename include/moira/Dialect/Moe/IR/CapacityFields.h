//===- CapacityFields.h - a capacity as a C++ value -------------*- C++ -*-===//
// The fields of #moe.capacity with their defaults, for code that builds capacities. Meaning and
// constraints are in dialects/Moe/MoeDialect.td. Included by MoeDialect.h only, behind the enums.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_DIALECT_MOE_CAPACITYFIELDS_H
#define MOIRA_DIALECT_MOE_CAPACITYFIELDS_H

#include <cstdint>

namespace moira::moe {

struct CapacityFields {
  CapacityRule rule = CapacityRule::factor;
  double value = 1;
  int64_t least = 0;
  CapacityDomain domain = CapacityDomain::batch;
  DropPolicy policy = DropPolicy::position;
  CapacityOrder order = CapacityOrder::token_major;
  LimitRenorm renorm = LimitRenorm::none;
  double renormEpsilon = 0, renormClampMin = 0, scale = 1;
  int64_t seed = 0, layer = 0;
};

} // namespace moira::moe

#endif // MOIRA_DIALECT_MOE_CAPACITYFIELDS_H
