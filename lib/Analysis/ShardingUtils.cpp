//===- ShardingUtils.cpp - the sharding algebra ---------------------------===//
#include "moira/Analysis/ShardingUtils.h"
#include "llvm/ADT/STLExtras.h"

using namespace mlir;
using namespace moira;
using dist::DimShardingAttr;
using dist::ReduceKind;
using dist::ShardingAttr;

using Axes = SmallVector<StringAttr>;

static bool contains(ArrayRef<StringAttr> axes, StringAttr axis) {
  return llvm::is_contained(axes, axis);
}

static Axes without(ArrayRef<StringAttr> axes, ArrayRef<StringAttr> removed) {
  Axes rest;
  for (StringAttr axis : axes)
    if (!contains(removed, axis))
      rest.push_back(axis);
  return rest;
}

static bool isPrefix(ArrayRef<StringAttr> shorter, ArrayRef<StringAttr> longer) {
  return shorter.size() <= longer.size() && longer.take_front(shorter.size()) == shorter;
}

//===----------------------------------------------------------------------===//
// Rules
//===----------------------------------------------------------------------===//

namespace {
/// Cuts factors one by one; a cut that would use an axis twice in one value is not made.
class FactorCuts {
public:
  FactorCuts(MLIRContext *context, const FactorRule &rule)
      : rule(rule), cuts(rule.factors.size(), DimShardingAttr::replicated(context)) {}

  /// Cuts `factor` like this unless something stands against it.
  void adopt(int factor, DimShardingAttr cut) {
    if (cut.isReplicated() || rule.factors[factor].kind == FactorKind::needReplication)
      return;
    DimShardingAttr old = cuts[factor];
    bool continues = !old.isRagged() && !cut.isRagged() && isPrefix(old.getAxes(), cut.getAxes());
    if (!old.isReplicated() && !continues)
      return;
    for (size_t other = 0; other < cuts.size(); ++other)
      if (int(other) != factor && meet(factor, other) && shareAxis(cuts[other], cut))
        return;
    cuts[factor] = cut;
  }

  /// Followers are cut like the factor that they follow or not at all.
  void dropStrayFollowers() {
    for (auto [cut, factor] : llvm::zip(cuts, rule.factors))
      if (factor.follows >= 0 && cut.getAxes() != cuts[factor.follows].getAxes())
        cut = DimShardingAttr::replicated(cut.getContext());
  }

  DimShardingAttr operator[](int factor) const { return cuts[factor]; }

  bool uses(StringAttr axis) const {
    return llvm::any_of(cuts, [&](DimShardingAttr cut) {
      return contains(cut.getAxes(), axis) || contains(cut.getExpertAxes(), axis);
    });
  }

  ShardingAttr shardingOf(MLIRContext *context, ArrayRef<int> factors) const {
    SmallVector<DimShardingAttr> dims;
    for (int factor : factors)
      dims.push_back(cuts[factor]);
    return ShardingAttr::get(context, dims);
  }

private:
  static bool shareAxis(DimShardingAttr a, DimShardingAttr b) {
    auto uses = [](DimShardingAttr cut, StringAttr axis) {
      return contains(cut.getAxes(), axis) || contains(cut.getExpertAxes(), axis);
    };
    return llvm::any_of(a.getAxes(), [&](StringAttr axis) { return uses(b, axis); }) ||
           llvm::any_of(a.getExpertAxes(), [&](StringAttr axis) { return uses(b, axis); });
  }

  /// True if both factors leave their axes in one value: side by side in a tensor, or one of them
  /// as the partial axes of a result in which the other stands.
  bool meet(int a, int b) const {
    auto inOne = [&](ArrayRef<SmallVector<int>> tensors) {
      return llvm::any_of(tensors, [&](const SmallVector<int> &factors) {
        return llvm::is_contained(factors, a) && llvm::is_contained(factors, b);
      });
    };
    auto stands = [&](int factor) {
      return llvm::any_of(rule.results, [&](const SmallVector<int> &factors) {
        return llvm::is_contained(factors, factor);
      });
    };
    auto reduces = [&](int factor) { return rule.factors[factor].kind == FactorKind::reduction; };
    auto follows = [&](int x, int y) { return rule.factors[x].follows == y; };
    if (rule.sumsAbsent && (stands(a) || stands(b)))
      return !follows(a, b) && !follows(b, a);
    return inOne(rule.operands) || inOne(rule.results) ||
           (reduces(a) && (stands(b) || reduces(b))) || (reduces(b) && stands(a));
  }

  const FactorRule &rule;
  SmallVector<DimShardingAttr> cuts;
};
} // namespace

bool moira::mayBePartial(Linearity linearity, unsigned index) {
  return linearity == Linearity::jointly || (linearity == Linearity::first && index == 0) ||
         (linearity == Linearity::firstTwo && index < 2);
}

RuleSolution moira::solveRule(MLIRContext *context, const FactorRule &rule,
                              ArrayRef<ShardingAttr> operands, ArrayRef<ShardingAttr> seeds) {
  FactorCuts cuts(context, rule);
  auto adoptAll = [&](ArrayRef<SmallVector<int>> tensors, ArrayRef<ShardingAttr> shardings) {
    for (auto [factors, sharding] : llvm::zip(tensors, shardings))
      if (sharding)
        for (auto [factor, dim] : llvm::zip(factors, sharding.getDims()))
          cuts.adopt(factor, dim);
  };
  // A seed is a decision: an operand may not continue it.
  SmallVector<bool> seeded(rule.factors.size(), false);
  adoptAll(rule.results, seeds);
  for (auto [factors, seed] : llvm::zip(rule.results, seeds))
    if (seed)
      for (int factor : factors)
        seeded[factor] = rule.factors[factor].kind != FactorKind::unconstrained;
  for (auto [factors, sharding] : llvm::zip(rule.operands, operands))
    if (sharding)
      for (auto [factor, dim] : llvm::zip(factors, sharding.getDims()))
        if (!seeded[factor])
          cuts.adopt(factor, dim);
  cuts.dropStrayFollowers();

  RuleSolution solution;
  for (ArrayRef<int> factors : rule.operands)
    solution.operands.push_back(cuts.shardingOf(context, factors));

  // Partial sums: kept where the operation is linear and no factor uses their axes.
  Axes partial;
  if (!operands.empty() && operands[0] && operands[0].isPartial() &&
      operands[0].getPartialKind() == ReduceKind::sum && rule.linearity != Linearity::none)
    for (StringAttr axis : operands[0].getPartialAxes()) {
      ArrayRef<ShardingAttr> summands =
          rule.linearity == Linearity::firstTwo ? operands.take_front(2) : operands;
      bool everywhere = llvm::all_of(summands, [&](ShardingAttr other) {
        return other && contains(other.getPartialAxes(), axis) &&
               other.getPartialKind() == ReduceKind::sum;
      });
      if (!cuts.uses(axis) && (rule.linearity == Linearity::first || everywhere))
        partial.push_back(axis);
    }
  for (auto [index, operand] : llvm::enumerate(solution.operands))
    if (mayBePartial(rule.linearity, index))
      operand = operand.withPartial(partial);

  for (auto [index, factor] : llvm::enumerate(rule.factors))
    if (factor.kind == FactorKind::reduction)
      llvm::append_range(partial, cuts[index].getAxes());
  for (ArrayRef<int> factors : rule.results) {
    ShardingAttr result = cuts.shardingOf(context, factors);
    Axes summed = partial;
    if (rule.sumsAbsent)
      for (auto [index, factor] : llvm::enumerate(rule.factors))
        if (factor.kind == FactorKind::passThrough && !llvm::is_contained(factors, int(index)))
          for (StringAttr axis : cuts[index].getAxes())
            if (!contains(result.usedAxes(), axis) && !contains(summed, axis))
              summed.push_back(axis);
    solution.results.push_back(result.withPartial(summed));
  }
  return solution;
}

ShardingAttr moira::canonicalPartial(ShardingAttr sharding, const MeshInfo &mesh) {
  Axes axes;
  for (StringAttr axis : mesh.names)
    if (contains(sharding.getPartialAxes(), axis))
      axes.push_back(axis);
  llvm::append_range(axes, without(sharding.getPartialAxes(), axes)); // unknown axes stay visible
  return sharding.withPartial(axes, sharding.getPartialKind());
}

ShardingAttr moira::withBound(ShardingAttr sharding, int64_t bound) {
  if (!sharding)
    return sharding;
  for (auto [index, dim] : llvm::enumerate(sharding.getDims()))
    if (dim.isGrowable())
      sharding =
          sharding.withDim(index, DimShardingAttr::get(dim.getContext(), dim.getAxes(), 0,
                                                       dim.getExpertAxes(), dim.getSlots(), bound));
  return sharding;
}

//===----------------------------------------------------------------------===//
// Reshards
//===----------------------------------------------------------------------===//

namespace {
/// Walks from one sharding to another. Every step only adds axes that the target has next or
/// removes axes that it has not, so the walk ends.
class ReshardPlanner {
public:
  ReshardPlanner(ShardingAttr from, ShardingAttr to) : current(from), to(to) {}

  std::optional<SmallVector<ReshardStep>> plan() {
    if (!isPossible())
      return std::nullopt;
    while (current != to)
      if (!slice() && !reduceScatter() && !allToAll() && !allReduce() && !allGather())
        return std::nullopt;
    return std::move(steps);
  }

private:
  bool isPossible() const {
    if (current.getDims().size() != to.getDims().size())
      return false;
    for (auto [a, b] : llvm::zip(current.getDims(), to.getDims()))
      if (a != b &&
          (a.isRagged() || b.isRagged() || (a.getPad() && !b.getAxes().empty()) || b.getPad()))
        return false;
    return llvm::all_of(to.getPartialAxes(), [&](StringAttr axis) {
      return contains(current.getPartialAxes(), axis) &&
             current.getPartialKind() == to.getPartialKind();
    });
  }

  ArrayRef<StringAttr> now(size_t dim) const { return current.getDims()[dim].getAxes(); }
  ArrayRef<StringAttr> wanted(size_t dim) const { return to.getDims()[dim].getAxes(); }
  size_t rank() const { return to.getDims().size(); }

  /// The axes that dimension `dim` needs next, as far as `fits` goes.
  Axes nextAxes(size_t dim, llvm::function_ref<bool(StringAttr)> fits) const {
    Axes run;
    if (isPrefix(now(dim), wanted(dim)))
      for (StringAttr axis : wanted(dim).drop_front(now(dim).size())) {
        if (!fits(axis))
          break;
        run.push_back(axis);
      }
    return run;
  }

  ShardingAttr withAxes(ShardingAttr sharding, size_t dim, ArrayRef<StringAttr> axes) const {
    return sharding.withDim(dim, DimShardingAttr::split(to.getContext(), axes));
  }
  ShardingAttr appended(ShardingAttr sharding, size_t dim, ArrayRef<StringAttr> axes) const {
    Axes all(sharding.getDims()[dim].getAxes());
    llvm::append_range(all, axes);
    return withAxes(sharding, dim, all);
  }

  bool emit(ReshardKind kind, int64_t dim, int64_t toDim, ArrayRef<StringAttr> axes,
            ShardingAttr result) {
    steps.push_back({kind, dim, toDim, Axes(axes), result});
    current = result;
    return true;
  }

  bool slice() {
    Axes used = current.usedAxes();
    for (size_t dim = 0; dim < rank(); ++dim)
      if (Axes run = nextAxes(dim, [&](StringAttr a) { return !contains(used, a); }); !run.empty())
        return emit(ReshardKind::slice, dim, -1, run, appended(current, dim, run));
    return false;
  }

  bool reduceScatter() {
    auto isReduced = [&](StringAttr axis) {
      return contains(current.getPartialAxes(), axis) && !contains(to.getPartialAxes(), axis);
    };
    for (size_t dim = 0; dim < rank(); ++dim)
      if (Axes run = nextAxes(dim, isReduced); !run.empty()) {
        ShardingAttr rest =
            current.withPartial(without(current.getPartialAxes(), run), current.getPartialKind());
        return emit(ReshardKind::reduceScatter, dim, -1, run, appended(rest, dim, run));
      }
    return false;
  }

  bool allToAll() {
    for (size_t dim = 0; dim < rank(); ++dim) {
      Axes next = nextAxes(dim, [](StringAttr) { return true; });
      for (size_t length = next.size(); length > 0; --length) {
        ArrayRef<StringAttr> run = ArrayRef<StringAttr>(next).take_front(length);
        for (size_t source = 0; source < rank(); ++source) {
          ArrayRef<StringAttr> axes = now(source);
          if (source == dim || axes.size() < length || axes.take_back(length) != run ||
              isPrefix(axes, wanted(source)) || current.getDims()[source].getPad())
            continue;
          ShardingAttr result = withAxes(current, source, axes.drop_back(length));
          return emit(ReshardKind::allToAll, source, dim, run, appended(result, dim, run));
        }
      }
    }
    return false;
  }

  bool allReduce() {
    Axes axes = without(current.getPartialAxes(), to.getPartialAxes());
    if (axes.empty())
      return false;
    return emit(ReshardKind::allReduce, -1, -1, axes,
                current.withPartial(to.getPartialAxes(), to.getPartialKind()));
  }

  bool allGather() {
    for (size_t dim = 0; dim < rank(); ++dim) {
      size_t common = 0;
      while (common < now(dim).size() && common < wanted(dim).size() &&
             now(dim)[common] == wanted(dim)[common])
        ++common;
      if (common == now(dim).size())
        continue;
      // Not further than to an axis that an all_to_all can move elsewhere, but pads go with the
      // last of their axes, so these go at once.
      size_t keep = now(dim).size() - 1;
      while (keep > common &&
             (current.getDims()[dim].getPad() || !isWantedElsewhere(now(dim)[keep - 1], dim)))
        --keep;
      return emit(ReshardKind::allGather, dim, -1, now(dim).drop_front(keep),
                  withAxes(current, dim, now(dim).take_front(keep)));
    }
    return false;
  }

  bool isWantedElsewhere(StringAttr axis, size_t dim) const {
    for (size_t other = 0; other < rank(); ++other)
      if (other != dim && contains(wanted(other), axis))
        return true;
    return false;
  }

  ShardingAttr current;
  const ShardingAttr to;
  SmallVector<ReshardStep> steps;
};
} // namespace

std::optional<SmallVector<ReshardStep>> moira::planReshard(ShardingAttr from, ShardingAttr to) {
  return ReshardPlanner(from, to).plan();
}
