//===- RowLayout.cpp - How a kernel's row is cut into dimensions ----------===//
//
// See RowLayout.h. The analysis has three parts: collect what the steps demand, choose the leading
// dims, cut every shape.
//
//===----------------------------------------------------------------------===//
#include "RowLayout.h"
#include "llvm/ADT/STLExtras.h"
#include <numeric>
#include <optional>

using namespace moira::kernels;
using llvm::ArrayRef;
using llvm::createStringError;
using llvm::Error;
using llvm::SmallVector;

/// A point should be at least this many elements where the steps leave a choice: enough for a warp
/// of 4-element vectors to have work.
static constexpr int64_t kSmallestPoint = 512;

static int64_t product(ArrayRef<int64_t> dims) {
  return std::accumulate(dims.begin(), dims.end(), int64_t(1), std::multiplies<>());
}

namespace {
class Analysis {
public:
  Analysis(const KernelSpec &spec, ArrayRef<RowValue> values)
      : spec(spec), values(values), uses(values.size()) {}

  Error collect();
  Error chooseLead();
  Error cut(RowLayout &layout);

private:
  /// How a value is read: with all its dims, with the last dims of value `of`, or as a rope table.
  struct Use {
    enum Kind { None, Full, Suffix, Table } kind = None;
    unsigned of = 0;
  };

  ArrayRef<int64_t> shape(unsigned v) const { return values[v].shape; }
  Error use(unsigned v, Use::Kind kind, unsigned of = 0) {
    Use &u = uses[v];
    if (u.kind != Use::None &&
        (u.kind != kind || (kind == Use::Suffix && shape(u.of) != shape(of))))
      return createStringError("v%u is used in two ways that one kernel cannot have", v);
    if (kind == Use::Full && !values[v].rowwise)
      return createStringError("v%u is shared where a rowwise value is needed", v);
    u = {kind, of};
    return Error::success();
  }
  Error reduceFrom(unsigned dim) {
    if (exact && *exact != dim)
      return createStringError("reductions over different dims cannot be fused");
    exact = dim;
    return Error::success();
  }
  void atMost(unsigned dims) { cap = std::min(cap, dims); }
  SmallVector<int64_t, 4> cutShape(ArrayRef<int64_t> of, unsigned from) const;

  const KernelSpec &spec;
  ArrayRef<RowValue> values;
  std::vector<Use> uses;
  unsigned cap = ~0u, lead = 0;
  std::optional<unsigned> exact;
  int64_t split = 0;
  bool mergeTail = true, hasPair = false;
  SmallVector<unsigned, 4> prefixCuts; // boundaries within lead that stay, counted from the front
  SmallVector<unsigned, 4> suffixCuts; // boundaries within the tail that stay, counted from the end
};
} // namespace

Error Analysis::collect() {
  for (auto [i, step] : llvm::enumerate(spec.steps)) {
    unsigned x = step.args[0], rank = shape(x).size();
    Error e = use(x, Use::Full);
    if (!e)
      e = use(spec.numInputs() + i, Use::Full);
    if (e)
      return e;
    atMost(rank);
    switch (step.kind) {
    case StepKind::RmsNorm:
    case StepKind::RmsApply: {
      unsigned w = step.args.back();
      if (Error e = use(w, Use::Suffix, x))
        return e;
      if (Error e = reduceFrom(rank - shape(w).size()))
        return e;
      if (step.kind == StepKind::RmsApply)
        if (Error e = use(step.args[1], Use::Full))
          return e;
      break;
    }
    case StepKind::LayerNorm:
      for (unsigned w : llvm::ArrayRef(step.args).drop_front())
        if (Error e = use(w, Use::Suffix, x))
          return e;
      if (Error e = reduceFrom(rank - shape(step.args[1]).size()))
        return e;
      break;
    case StepKind::SumSquares:
      if (Error e = reduceFrom(rank - step.normDims))
        return e;
      break;
    case StepKind::Add: {
      unsigned b = step.args[1];
      bool full = values[b].rowwise && shape(b).size() == rank;
      if (Error e = use(b, full ? Use::Full : Use::Suffix, x))
        return e;
      break;
    }
    case StepKind::Glu:
      atMost(rank - 2);
      mergeTail = false;
      hasPair = true;
      break;
    case StepKind::SigmoidGate:
      if (Error e = use(step.args[1], Use::Full))
        return e;
      atMost(rank - 1);
      suffixCuts.push_back(1);
      hasPair = true;
      break;
    case StepKind::Rope: {
      for (unsigned table : {step.args[1], step.args[2]})
        if (Error e = use(table, Use::Table))
          return e;
      int64_t gcd = std::gcd(shape(step.args[1])[1], shape(x)[2]);
      if (split && split != gcd)
        return createStringError("ropes of different sizes cannot be fused");
      split = gcd;
      mergeTail = false;
      atMost(2);
      prefixCuts.push_back(1);
      break;
    }
    case StepKind::Scale:
    case StepKind::Clamp:
    case StepKind::Act:
    case StepKind::Cast:
      break;
    }
  }
  if (split && hasPair)
    return createStringError("rope cannot be fused with glu or sigmoid_gate");
  return Error::success();
}

Error Analysis::chooseLead() {
  unsigned common = cap;
  std::optional<ArrayRef<int64_t>> first;
  for (auto [v, u] : llvm::enumerate(uses)) {
    if (u.kind == Use::None)
      return createStringError("v%zu is not used", v);
    if (u.kind != Use::Full)
      continue;
    if (!first)
      first = shape(v);
    auto [a, b] = std::mismatch(first->begin(), first->end(), shape(v).begin(), shape(v).end());
    common = std::min<unsigned>(common, a - first->begin());
  }
  if (exact) {
    if (*exact > common)
      return createStringError("a step mixes dims that a reduction keeps apart");
    lead = *exact;
  } else {
    ArrayRef<int64_t> last = values.back().shape;
    lead = common;
    while (lead > 0 && product(last.drop_front(lead)) < kSmallestPoint)
      --lead;
  }
  return Error::success();
}

/// Dims of `of` from dim `from` on, merged where no boundary has to stay; the last one split.
SmallVector<int64_t, 4> Analysis::cutShape(ArrayRef<int64_t> of, unsigned from) const {
  unsigned rank = of.size();
  SmallVector<int64_t, 4> result;
  for (unsigned i = from; i < rank; ++i) {
    bool boundary = i == from || i == lead || (i < lead && llvm::is_contained(prefixCuts, i)) ||
                    (i > lead && (!mergeTail || llvm::is_contained(suffixCuts, rank - i)));
    if (boundary)
      result.push_back(of[i]);
    else
      result.back() *= of[i];
  }
  if (split && rank > lead) {
    result.back() /= split;
    result.push_back(split);
  }
  return result;
}

Error Analysis::cut(RowLayout &layout) {
  for (auto [v, u] : llvm::enumerate(uses)) {
    if (u.kind != Use::Suffix)
      continue;
    unsigned rank = shape(u.of).size(), dims = shape(v).size();
    if (rank - dims <= lead)
      prefixCuts.push_back(rank - dims);
    else
      suffixCuts.push_back(dims);
  }
  layout.split = split;
  for (auto [v, u] : llvm::enumerate(uses)) {
    ArrayRef<int64_t> s = shape(v);
    if (split && u.kind != Use::Table && s.size() > lead && s.back() % split)
      return createStringError("v%zu has last dim %lld, which rope's halves do not divide", v,
                               (long long)s.back());
    switch (u.kind) {
    case Use::Full:
      layout.shapes.push_back(cutShape(s, 0));
      break;
    case Use::Suffix:
      layout.shapes.push_back(cutShape(shape(u.of), shape(u.of).size() - s.size()));
      break;
    default:
      layout.shapes.push_back({s[0], s[1] / split, split});
    }
  }
  SmallVector<int64_t, 4> point = cutShape(values.back().shape, 0);
  int64_t leadProduct = product(ArrayRef<int64_t>(values.back().shape).take_front(lead));
  unsigned groups = 0;
  for (unsigned i = 0; i < lead; ++i)
    groups += i == 0 || llvm::is_contained(prefixCuts, i);
  layout.leadSizes.assign(point.begin(), point.begin() + groups);
  assert(product(layout.leadSizes) == leadProduct);
  (void)leadProduct;
  return Error::success();
}

llvm::Expected<RowLayout> RowLayout::get(const KernelSpec &spec, ArrayRef<RowValue> values) {
  RowLayout layout;
  Analysis analysis(spec, values);
  if (Error e = analysis.collect())
    return e;
  if (Error e = analysis.chooseLead())
    return e;
  if (Error e = analysis.cut(layout))
    return e;
  return layout;
}
