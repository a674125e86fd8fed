//===- MeshCheck.cpp - does a model fit a mesh? ---------------------------===//
#include "moira/Analysis/MeshCheck.h"
#include "moira/Analysis/WeightUses.h"
#include "moira/Support/LayersText.h"
#include "llvm/ADT/StringExtras.h"
#include <cmath>
#include <numeric>

using namespace mlir;
using namespace moira;

namespace {
/// A meaning as a constraint: the axis, and the importer's key in `moe.config_fields`.
struct MeaningRow {
  DimMeaning meaning;
  StringRef axis, key;
};
constexpr MeaningRow kMeanings[] = {
    {DimMeaning::queryHeads, kTensorAxis, "heads"},
    {DimMeaning::denseWidth, kTensorAxis, "dense_width"},
    {DimMeaning::sharedWidth, kTensorAxis, "shared_width"},
    {DimMeaning::expertWidth, kTensorAxis, "expert_width"},
    {DimMeaning::experts, kExpertAxis, "experts"},
};
} // namespace

std::vector<MeshConstraint> moira::collectMeshConstraints(ModuleOp module) {
  std::vector<MeshConstraint> constraints;
  auto fields = module->getAttrOfType<DictionaryAttr>("moe.config_fields");
  auto add = [&](StringRef axis, StringRef what, int64_t size, std::string field,
                 std::optional<int64_t> layer, Location loc) {
    for (MeshConstraint &old : constraints)
      if (old.axis == axis && old.what == what && old.size == size) {
        if (layer)
          old.layers.insert(*layer);
        return;
      }
    constraints.push_back({axis, what.str(), size, std::move(field), {}, loc});
    if (layer)
      constraints.back().layers.insert(*layer);
  };
  module.walk([&](moe::EmbeddingOp op) {
    ArrayRef<int64_t> ids = cast<RankedTensorType>(op.getIds().getType()).getShape();
    auto part = fields ? fields.getAs<StringAttr>("micro_batch") : StringAttr();
    if (!ids.empty())
      add(kDataAxis, part ? "the rows of a micro-batch" : "the batch", ids[0],
          part ? part.str() : "--batch", std::nullopt, op.getLoc());
  });
  for (const WeightUse &use : collectWeightUses(module))
    for (const MeaningRow &row : kMeanings)
      if (row.meaning == use.meaning) {
        moe::StateOp state = use.state;
        auto field = fields ? fields.getAs<StringAttr>(row.key) : StringAttr();
        std::optional<int64_t> layer;
        if (IntegerAttr attr = state.getLayerAttr())
          layer = attr.getInt();
        add(row.axis, wordsFor(row.meaning), state.getTensorType().getDimSize(use.dim),
            field ? "config.json: " + field.str() : "", layer, state.getLoc());
      }
  return constraints;
}

static std::vector<int64_t> divisorsOf(int64_t n) {
  std::vector<int64_t> divisors;
  for (int64_t d = 1; d <= n; ++d)
    if (n % d == 0)
      divisors.push_back(d);
  return divisors;
}

/// Every size of this axis that fits divides this number; 0 if nothing constrains the axis.
static int64_t commonDivisor(ArrayRef<MeshConstraint> constraints, StringRef axis) {
  int64_t common = 0;
  for (const MeshConstraint &constraint : constraints)
    if (constraint.axis == axis)
      common = std::gcd(common, constraint.size);
  return common;
}

static bool allows(ArrayRef<MeshConstraint> constraints, StringRef axis, int64_t size) {
  return commonDivisor(constraints, axis) % size == 0;
}

static MeshInfo makeMesh(MLIRContext *context, int64_t dp, int64_t ep, int64_t tp) {
  MeshInfo mesh;
  for (auto [axis, size] :
       {std::pair<StringRef, int64_t>(kDataAxis, dp), {kExpertAxis, ep}, {kTensorAxis, tp}})
    if (size > 1) {
      mesh.names.push_back(StringAttr::get(context, axis));
      mesh.sizes.push_back(size);
    }
  return mesh;
}

/// Whether each rank has samples of its own, which are a subtree of all of them: what a module that
/// is moe.deterministic asks of a mesh besides.
static bool keepsSamples(ArrayRef<MeshConstraint> constraints, int64_t dp, int64_t ep, int64_t tp) {
  return tp == 1 && llvm::isPowerOf2_64(uint64_t(dp)) && llvm::isPowerOf2_64(uint64_t(ep)) &&
         allows(constraints, kDataAxis, dp * ep);
}

std::vector<MeshInfo> moira::suggestMeshes(MLIRContext *context,
                                           ArrayRef<MeshConstraint> constraints, int64_t ranks,
                                           const MeshInfo &wanted, size_t limit,
                                           bool deterministic) {
  std::vector<std::pair<double, MeshInfo>> found;
  auto change = [&](StringRef axis, int64_t size) {
    return std::abs(std::log2(double(size) / double(wanted.sizeOf(axis))));
  };
  for (int64_t dp : divisorsOf(ranks)) {
    if (!allows(constraints, kDataAxis, dp))
      continue;
    for (int64_t ep : divisorsOf(ranks / dp)) {
      if (ep > 1 && commonDivisor(constraints, kExpertAxis) == 0)
        continue; // nothing to split
      int64_t tp = ranks / dp / ep;
      if (!allows(constraints, kExpertAxis, ep) || !allows(constraints, kTensorAxis, tp))
        continue;
      if (deterministic && !keepsSamples(constraints, dp, ep, tp))
        continue;
      found.emplace_back(change(kDataAxis, dp) + change(kExpertAxis, ep) + change(kTensorAxis, tp),
                         makeMesh(context, dp, ep, tp));
    }
  }
  llvm::stable_sort(found, [](const auto &a, const auto &b) { return a.first < b.first; });
  std::vector<MeshInfo> meshes;
  for (auto &[distance, mesh] : ArrayRef(found).take_front(limit))
    meshes.push_back(mesh);
  return meshes;
}

/// "; valid ep for 8 ranks: 1 2 4 8"
static std::string validSizes(ArrayRef<MeshConstraint> constraints, StringRef axis, int64_t ranks) {
  std::string text = "; valid " + axis.str() + " for " + std::to_string(ranks) + " ranks:";
  for (int64_t size : divisorsOf(ranks))
    if (allows(constraints, axis, size))
      text += " " + std::to_string(size);
  return text;
}

std::vector<MeshInfo> moira::nearestMeshes(MLIRContext *context,
                                           ArrayRef<MeshConstraint> constraints,
                                           const MeshInfo &wanted, size_t limit,
                                           bool deterministic) {
  std::vector<MeshInfo> found =
      suggestMeshes(context, constraints, wanted.ranks(), wanted, limit, deterministic);
  if (!found.empty())
    return found;
  int64_t most = 1;
  auto sizes = [&](StringRef axis) {
    return divisorsOf(std::max<int64_t>(1, commonDivisor(constraints, axis)));
  };
  for (int64_t dp : sizes(kDataAxis))
    for (int64_t ep : sizes(kExpertAxis))
      for (int64_t tp : sizes(kTensorAxis))
        if (dp * ep * tp < wanted.ranks() &&
            (!deterministic || keepsSamples(constraints, dp, ep, tp)))
          most = std::max(most, dp * ep * tp);
  if (most == 1)
    return {MeshInfo()};
  return suggestMeshes(context, constraints, most, wanted, /*limit=*/1, deterministic);
}

static std::string advice(MLIRContext *context, ArrayRef<MeshConstraint> constraints,
                          const MeshInfo &mesh, bool deterministic) {
  std::vector<std::string> texts;
  std::vector<MeshInfo> near =
      nearestMeshes(context, constraints, mesh, /*limit=*/3, deterministic);
  for (const MeshInfo &good : near)
    texts.push_back(good.ranks() == 1 ? "one rank" : "--mesh=" + formatMesh(good));
  return (near.front().ranks() == mesh.ranks()
              ? std::string("; try ")
              : "; no mesh of " + std::to_string(mesh.ranks()) + " ranks fits, try ") +
         llvm::join(texts, " or ");
}

/// Says what keepsSamples finds wrong.
static void checkDeterministic(ModuleOp module, const MeshInfo &mesh,
                               ArrayRef<MeshConstraint> constraints,
                               std::vector<MeshViolation> &violations) {
  auto add = [&](const std::string &text) {
    violations.push_back({"--deterministic: " + text, "", module.getLoc()});
  };
  for (auto [axis, size] : llvm::zip(mesh.names, mesh.sizes)) {
    std::string split = axis.str() + "=" + std::to_string(size);
    if (axis == kTensorAxis)
      add(split + " cuts sums that one rank makes whole; take dp and ep");
    else if (!llvm::isPowerOf2_64(uint64_t(size)))
      add(split + " is not a power of two, so its ranks hold no subtrees of a sum over samples; "
                  "take 2, 4, 8, …");
  }
  int64_t dp = mesh.sizeOf(kDataAxis), ranks = dp * mesh.sizeOf(kExpertAxis);
  for (const MeshConstraint &constraint : constraints)
    if (constraint.axis == kDataAxis && constraint.size % dp == 0 && constraint.size % ranks != 0)
      add("dp·ep = " + std::to_string(ranks) + " does not divide " + constraint.what + " " +
          std::to_string(constraint.size) + " (" + constraint.field +
          "), so a sample would be on several ranks; take a smaller mesh or a larger batch");
}

std::vector<MeshViolation> moira::checkMesh(ModuleOp module, const MeshInfo &mesh) {
  std::vector<MeshConstraint> constraints = collectMeshConstraints(module);
  std::vector<MeshViolation> violations;
  bool deterministic = module->hasAttr(moe::MoeDialect::kDeterministic);
  if (deterministic)
    checkDeterministic(module, mesh, constraints, violations);
  std::string hint;
  for (const MeshConstraint &constraint : constraints) {
    int64_t size = mesh.sizeOf(constraint.axis);
    if (constraint.size % size == 0)
      continue;
    if (hint.empty())
      hint = advice(module.getContext(), constraints, mesh, deterministic);
    std::string number = std::to_string(constraint.size);
    // "64 experts", but "the dense width 112".
    std::string text = constraint.axis.str() + "=" + std::to_string(size) + " does not divide ";
    text += StringRef(constraint.what).starts_with("the ") ? constraint.what + " " + number
                                                           : number + " " + constraint.what;
    if (!constraint.layers.empty())
      text += " of " + layersText(constraint.layers);
    if (!constraint.field.empty())
      text += " (" + constraint.field + "=" + number + ")";
    text += validSizes(constraints, constraint.axis, mesh.ranks());
    violations.push_back({text, hint, constraint.loc});
  }
  return violations;
}
