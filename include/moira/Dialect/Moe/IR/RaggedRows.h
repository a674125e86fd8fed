//===- RaggedRows.h - how many rows a dispatch makes on a shard -*- C++ -*-===//
// The one place that decides slots and bounds; dispatch's sharding and the partition phase ask
// here.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_DIALECT_MOE_RAGGEDROWS_H
#define MOIRA_DIALECT_MOE_RAGGEDROWS_H

#include "moira/Dialect/Moe/IR/MoeOps.h"

namespace moira::moe {

/// The rows that a dispatch makes on one shard: `slots` slots of B rows.
struct RaggedRows {
  llvm::SmallVector<mlir::StringAttr> rowAxes; ///< axes that split the tokens outside an exchange
  llvm::SmallVector<mlir::StringAttr> expertAxes; ///< axes that split the experts
  bool exchange = false; ///< the expert axes split the tokens too: rows move
  int64_t slots = 1;
  int64_t bound = 0; ///< B to begin with, rows of one slot
  int64_t worst = 0; ///< no routing can need more
};

/// `tokens` is the sharding of the routing's tokens: T_l of them on a shard, E_l experts on each of
/// P expert shards. A slot needs T_l·k/P rows on average and T_l·min(k, E_l) at worst. B starts at
/// twice the average, at the worst where that is small, or at the dispatch's own `bound`.
///
///     tokens {dp},{ep}  experts {ep}  → ragged{dp}{ep} P x B            by exchange
///     tokens {dp},{}    experts {ep}  → ragged{dp}{ep} 1 x B            by selection
///     tokens {dp},{}    experts {}    → ragged{dp}{}   1 x T_l·k        never grows
///
/// Fails with a diagnostic if only some of the expert axes split the tokens.
mlir::FailureOr<RaggedRows> raggedRows(DispatchOp op, const MeshInfo &mesh,
                                       dist::ShardingAttr tokens);

} // namespace moira::moe

#endif // MOIRA_DIALECT_MOE_RAGGEDROWS_H
