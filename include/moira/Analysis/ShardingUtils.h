//===- ShardingUtils.h - the sharding algebra -------------------*- C++ -*-===//
// Pure functions on shardings: what an operation's factor rule makes of its operands' shardings,
// and which collectives lead from one sharding to another. No IR is changed here; the passes in
// lib/Transforms apply what these functions say.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_ANALYSIS_SHARDINGUTILS_H
#define MOIRA_ANALYSIS_SHARDINGUTILS_H

#include "moira/Analysis/FactorRule.h"
#include "moira/Dialect/Dist/IR/DistDialect.h"
#include "llvm/ADT/SmallVector.h"
#include <optional>

namespace moira {

/// What a rule says once its operands' shardings are known.
struct RuleSolution {
  llvm::SmallVector<dist::ShardingAttr> operands; ///< what every operand must have
  llvm::SmallVector<dist::ShardingAttr> results;  ///< what the results then have
};

/// Solves a rule: one cut for every factor, from which the shardings follow.
///
/// `operands`: shardings as they are; null means free (a weight that nobody has cut yet takes what
/// its factors say). `seeds`: wanted dimensions of results, or null. Seeds win over operands; among
/// operands the first cut wins, unless a later one continues it ({dp}, then {dp, ep}: slicing is
/// free, gathering is not). Two factors that meet in one tensor never get the same axis: the first
/// keeps it. An operand that the operation is linear in keeps its partial axes as long as no factor
/// uses them; any other operand must be complete.
///
///     linear x[b,s,K] [{dp},{},{}], w[N,K] [{tp},{}]            → [{dp},{},{tp}]
///     linear x[b,s,K] [{dp},{},{tp}], w[N,K] free               → w [{},{tp}]; [{dp},{},{}]
///     partial{tp} add    a [{dp},{}] partial{tp}, b [{dp},{}]               → a complete;
///     [{dp},{}] add    a [{},{}] partial{ep,tp}, b [{},{}] partial{tp}    → a partial{tp}; [{},{}]
///     partial{tp}
RuleSolution solveRule(mlir::MLIRContext *context, const FactorRule &rule,
                       llvm::ArrayRef<dist::ShardingAttr> operands,
                       llvm::ArrayRef<dist::ShardingAttr> seeds);

/// True if an operation with this linearity may take a partial sum as operand `index`.
bool mayBePartial(Linearity linearity, unsigned index);

/// The same sharding with its partial axes in the mesh's order, so that equal means identical.
dist::ShardingAttr canonicalPartial(dist::ShardingAttr sharding, const MeshInfo &mesh);

/// The same sharding with every ragged bound replaced; null stays null.
dist::ShardingAttr withBound(dist::ShardingAttr sharding, int64_t bound);

enum class ReshardKind { slice, reduceScatter, allToAll, allReduce, allGather };

/// One collective (or slice) of a reshard.
struct ReshardStep {
  ReshardKind kind;
  int64_t dim; ///< the dimension that changes; of an all-to-all the one that loses the axes; −1 for
               ///< all_reduce
  int64_t toDim; ///< of an all-to-all the dimension that gains the axes, else −1
  llvm::SmallVector<mlir::StringAttr> axes;
  dist::ShardingAttr result;
};

/// The steps from one sharding to another, cheapest first so that the dear ones move the fewest
/// bytes: slices (free), reduce_scatter, all_to_all, all_reduce, all_gather. Nothing if there is no
/// way: a ragged dimension changes, pads appear or stay on fewer axes (a dimension that is gathered
/// whole loses them), or `to` is partial where `from` is not.
///
///     [{},{}] partial{tp}  → [{tp},{}]              reduce_scatter dim 0 over tp
///     [{},{}] partial{tp}  → [{dp},{}]              slice dim 0 over dp, all_reduce over tp
///     [{ep},{}]            → [{},{ep}]              all_to_all dim 0 → 1 over ep
///     [{dp,ep},{}]         → [{dp},{}]              all_gather dim 0 over ep
std::optional<llvm::SmallVector<ReshardStep>> planReshard(dist::ShardingAttr from,
                                                          dist::ShardingAttr to);

} // namespace moira

#endif // MOIRA_ANALYSIS_SHARDINGUTILS_H
